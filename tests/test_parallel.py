"""Threads: the same results in the same order, whatever their number."""

import threading
import time
from contextvars import ContextVar

import numpy as np
import pytest
from checks import assert_agrees, frozen

from minisegnet import parallel


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    """Run with so many threads, and leave no pool behind."""
    monkeypatch.setenv("MINISEGNET_NUM_THREADS", str(request.param))
    parallel.num_threads.cache_clear()
    parallel._pool.cache_clear()
    yield request.param
    if parallel._pool.cache_info().currsize:
        parallel._pool().shutdown()
    parallel._pool.cache_clear()
    parallel.num_threads.cache_clear()


def test_results_come_in_the_order_of_the_items(threads):
    def slow_first(i):
        time.sleep(0.002 * (5 - i))
        return i * i

    assert parallel.parallel_map(slow_first, range(5)) == [0, 1, 4, 9, 16]
    assert parallel.parallel_map(slow_first, iter([3])) == [9]
    assert parallel.parallel_map(slow_first, []) == []


def test_work_is_spread_over_threads_where_there_are_several(threads):
    together = threading.Barrier(2, timeout=5)

    def meet(_):
        if threads > 1:
            together.wait()  # passes only if two are here at once
        return threading.current_thread().name

    names = parallel.parallel_map(meet, range(2))
    assert len(set(names)) == min(threads, 2)


def test_little_work_stays_in_the_calling_thread(threads):
    names = parallel.parallel_map(lambda _: threading.current_thread().name, range(4),
                                  work=parallel.WORTH_A_THREAD - 1)
    assert set(names) == {threading.current_thread().name}


def test_nobody_works_on_after_an_error(threads):
    finished = []

    def work(i):
        if i == 0:
            raise ZeroDivisionError
        time.sleep(0.02)
        finished.append(i)

    with pytest.raises(ZeroDivisionError):
        parallel.parallel_map(work, range(3))
    count = len(finished)
    time.sleep(0.05)
    assert len(finished) == count
    assert parallel.parallel_map(abs, [-1, -2, -3]) == [1, 2, 3]  # and the next call is shared


def test_a_worker_may_map_again(threads):
    def inner(i):
        return sum(parallel.parallel_map(lambda j: i * j, range(10)))

    assert parallel.parallel_map(inner, range(20)) == [45 * i for i in range(20)]


def test_a_worker_sees_the_context_of_its_caller(threads):
    setting = ContextVar("setting", default="default")  # NumPy keeps its errstate like this
    token = setting.set("the caller's")
    try:
        seen = parallel.parallel_map(lambda _: setting.get(), range(4))
    finally:
        setting.reset(token)
    assert seen == 4 * ["the caller's"]


def test_an_error_in_a_worker_reaches_the_caller(threads):
    def fail(i):
        raise ZeroDivisionError(i)

    with pytest.raises(ZeroDivisionError):
        parallel.parallel_map(fail, range(3))
    assert parallel.parallel_map(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize("P, Q, R", [(7, 3, 2), (2, 3, 7), (1, 4, 1), (5, 0, 3), (64, 32, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_cut_matrix_product_is_the_whole_one(threads, rng, monkeypatch, P, Q, R, dtype):
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 0)
    a, b = frozen(rng.standard_normal((P, Q)), rng.standard_normal((Q, R)))
    a, b = a.astype(dtype), b.astype(dtype)
    for left, right in ((a, b), (np.asfortranarray(a), b.T.copy().T)):
        product = parallel.matmul(left, right)
        assert product.dtype == dtype
        assert_agrees(product, a @ b, 1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("P, R", [(7, 2), (2, 7)])
def test_a_product_is_cut_along_its_longer_side_into_a_piece_per_thread(monkeypatch, P, R):
    shapes = []

    def spy(function, pieces):
        return [function(piece) for piece in pieces]

    def matmul(a, b, out):
        shapes.append(out.shape)

    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(parallel, "num_threads", lambda: 3)
    monkeypatch.setattr(parallel, "parallel_map", spy)
    monkeypatch.setattr(np, "matmul", matmul)
    parallel.matmul(np.ones((P, 2)), np.ones((2, R)))
    assert shapes == ([(3, 2), (3, 2), (1, 2)] if P > R else [(2, 3), (2, 3), (2, 1)])


def test_row_blocks_cover_every_row_once():
    for rows, bytes_per_row in ((1, 10), (1000, 1000), (7, 10**9), (5, 0), (0, 8)):
        blocks = parallel.row_blocks(rows, bytes_per_row)
        covered = [row for block in blocks for row in range(block.start, block.stop)]
        assert covered == list(range(rows))
        assert all((block.stop - block.start) * bytes_per_row <= parallel.BLOCK_BYTES
                   or block.stop - block.start == 1 for block in blocks)


@pytest.mark.parametrize("value", ["", "0", "-2", "many"])
def test_without_a_usable_number_the_processors_decide(monkeypatch, value):
    monkeypatch.setenv("MINISEGNET_NUM_THREADS", value)
    parallel.num_threads.cache_clear()
    assert parallel.num_threads() >= 1
    parallel.num_threads.cache_clear()


def test_a_product_within_a_share_is_not_cut(threads, rng, monkeypatch):
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 0)
    a, b = rng.standard_normal((8, 3)), rng.standard_normal((3, 2))
    cuts = []
    real = np.matmul
    monkeypatch.setattr(np, "matmul", lambda *args, **kw: cuts.append(1) or real(*args, **kw))
    products = parallel.parallel_map(lambda _: parallel.matmul(a, b), range(4))
    assert not cuts  # np.matmul is called for pieces only, the whole is a @ b
    for product in products:
        assert_agrees(product, a @ b, 1e-14)


def test_within_one_thread_nothing_is_shared_and_afterwards_it_is_again(threads):
    def threads_seen():
        def name(_):
            time.sleep(0.02)
            return threading.current_thread().name

        return set(parallel.parallel_map(name, range(4)))

    with parallel.one_thread():
        with parallel.one_thread():
            pass
        assert threads_seen() == {threading.current_thread().name}
    assert (len(threads_seen()) > 1) == (threads > 1)
