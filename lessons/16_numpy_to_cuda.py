# %% [markdown]
# # 16 · From NumPy to CUDA: one kernel at a time
#
# | | |
# |---|---|
# | goal | write, launch and test a CUDA kernel, on your own processor |
# | before this | lesson 3 |
# | read | 15 minutes |
# | exercises | 25 minutes |
# | computes | 6 s |

# %%
import atexit
import shutil
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

from minisegnet import losses, plots
from minisegnet.cuda import emulator
from minisegnet.cuda.emulator import KernelError, fiber_order
from minisegnet.cuda.launch import KernelFile
from minisegnet.errors import UserError
from minisegnet.plots.cells import thread_addresses
from minisegnet.plots.knob import Panel, over_a_knob
from minisegnet.tables import ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(16)
if not emulator.is_available():
    print("There is no g++ here, which compiles the kernels. Read on: what needs it is passed "
          "over, and exercise 16.1 does without. (On Debian and Ubuntu: apt install g++)")

# %% [markdown]
# ## Predict before you run
#
# A GPU runs threads in groups of 32, called *warps*, and its memory is fetched in sectors of 32
# bytes. The threads of a warp read one float32 each, at the same moment, from an NHWC array with
# 64 channels. You may give neighbouring threads neighbouring *channels* of a pixel, or the same
# channel of neighbouring *pixels*.
#
# **How many sectors does the warp fetch, in the first case and in the second?** Write down two
# numbers. They are counted in the experiment at the end.

# %% [markdown]
# ## The grid is the loop
#
# In NumPy, hardswish is one line: `x * np.clip(x + 3, 0, 6) / 6`. Inside NumPy is a loop over the
# elements. In CUDA that loop goes away. You write what is done to *one* element, a *kernel*, and
# launch it with many *threads*; each finds out who it is, and from that which element is its own.
#
# Threads come in *blocks* of equal size, all blocks together are the *grid*:
#
# | | | |
# |---|---|---|
# | `blockDim.x` | threads in a block | the same everywhere |
# | `threadIdx.x` | my number in my block | 0 to `blockDim.x - 1` |
# | `blockIdx.x` | my block's number in the grid | 0 to `gridDim.x - 1` |
# | `blockIdx.x * blockDim.x + threadIdx.x` | my number among all | the index of my element |
#
# Here you need no GPU. The package compiles the same CUDA text with g++ and runs it on your
# processor, thread by thread: slowly, with the same numbers, and far stricter than a GPU. Two
# helpers: `launch` runs a kernel, `attempt` also prints what goes wrong. `REAL` is the type of the
# numbers, `float` or `double`, as the arrays have it. Of the three kernels below, the first is
# hardswish; the second lacks a line, of which more soon; the third lets every thread say who it
# is.


# %%
workplace = tempfile.mkdtemp()
atexit.register(shutil.rmtree, workplace, ignore_errors=True)


def compiled(text):
    """Return the kernels of a CUDA text. They are compiled when first launched."""
    path = Path(tempfile.mkdtemp(dir=workplace), "kernel.cu")
    path.write_text(f'#include "common.h"\n#line 1 "kernel.cu"\n{text}', encoding="utf-8")
    return KernelFile(path)


def launch(kernels, name, grid, block, **arguments):
    """Run a kernel; without g++, say so by the error that a check takes for "to do"."""
    try:
        kernels.launch(name, (grid,), (block,), **arguments)
    except UserError as error:
        to_do = NotImplementedError(str(error))
        raise to_do from None


def attempt(*what, **arguments):
    """Run a kernel, print its error if there is one; return whether it ran to its end."""
    try:
        launch(*what, **arguments)
    except KernelError as error:
        print(f"KernelError: {error}")
    except NotImplementedError as error:
        print(f"not run: {error}")
    else:
        return True
    return False


hardswish = compiled(r"""
__global__ void hardswish_kernel(const REAL* x, REAL* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;  // which element is mine?
  if (i >= n) return;                                   // none
  const REAL gate = min(max(x[i] + 3, REAL(0)), REAL(6)) / 6;
  out[i] = x[i] * gate;
}

__global__ void hardswish_without_tail_kernel(const REAL* x, REAL* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const REAL gate = min(max(x[i] + 3, REAL(0)), REAL(6)) / 6;
  out[i] = x[i] * gate;
}

__global__ void who_kernel(int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  printf("  block %d, thread %d: %s %d\n", blockIdx.x, threadIdx.x,
         i < n ? "element" : "idle, there is no element", i);
}
""")

x = rng.standard_normal(1000).astype(np.float32) * 4
out = np.empty_like(x)
if attempt(hardswish, "hardswish_kernel", 4, 256, x=x, out=out, n=x.size):
    print(f"4 blocks of 256 threads, {x.size} elements; against NumPy: relative error "
          f"{relative_error(out, x * np.clip(x + 3, 0, 6) / 6):.1e}\n")
    print("the same in small, 2 blocks of 4 threads for 6 elements:")
    attempt(hardswish, "who_kernel", 2, 4, n=6)

# %% [markdown]
# ## Exercise 16.1: how many blocks?
#
# A launch covers $n$ elements by blocks of a fixed size: as few as possible, as many as needed.
# The last one is rarely full. Its threads without an element, the *tail*, are there all the same.
# How many blocks, and how many idle threads? Write it for an array of sizes $n$, without a loop.


# %% tags=["exercise-16.1"]
def launch_sizes(n, threads):
    """Return (blocks, idle threads), arrays of int, for n (array of int) and threads (int)."""
    ### BEGIN SOLUTION
    blocks = (n + threads - 1) // threads
    return blocks, blocks * threads - n
    ### END SOLUTION


# %% tags=["check-16.1"]
def covering(n, threads):
    """The right answer by counting: threads are started block by block until all have one."""
    blocks = np.array([len(range(0, each, threads)) for each in n])
    return blocks, blocks * threads - n


check("16.1", launch_sizes, {"n": np.array([1, 255, 256, 257, 512, 1000]), "threads": 256},
      expected=covering,
      slips={"n % threads is how many threads of the last block have an element. Idle are the "
             "others": lambda n, threads: (covering(n, threads)[0], n % threads),
             "where n fits exactly, nobody is idle, and no whole block": lambda n, threads: (
                 covering(n, threads)[0], threads - n % threads)},
      hints={"named": "",
             "dtype": "Whole numbers: // divides and rounds down.",
             "places": "Look at these n: the division rounds down, and you want up. A block too "
                       "many is wrong, too.",
             "": "Blocks: n / threads, rounded up. Idle: the threads of all blocks, less n."})

# %% [markdown]
# ## The tail, forgotten
#
# What if the line `if (i >= n) return;` is missing? A GPU usually says nothing. It reads whatever
# lies behind the array and writes its result over it, and some other array is a little wrong from
# then on. The emulator puts forbidden memory right behind every array:

# %%
attempt(hardswish, "hardswish_without_tail_kernel", 4, 256, x=x, out=out, n=x.size)
x, out = x[:768].copy(), out[:768].copy()
if attempt(hardswish, "hardswish_without_tail_kernel", 3, 256, x=x, out=out, n=x.size):
    print(f"and with {x.size} elements, 3 full blocks: no complaint")

# %% [markdown]
# Read the message: which array, which byte, and which thread of which block. And remember the
# second launch: **a test with round sizes proves nothing.** Test kernels with sizes that do not
# fit.
#
# ## Exercise 16.2: the gradient of softmax cross-entropy
#
# From lesson 3: for pixel $p$ with logits $z_k$ and the true class $y$,
#
# $$\text{dlogits}_k = \frac{\text{dloss}}{P}
#   \left(\frac{e^{z_k - m}}{\sum_j e^{z_j - m}} - [k = y]\right), \qquad m = \max_j z_j$$
#
# NumPy goes over the whole array for the maximum, then for the difference, then for the
# exponential, and so on. The kernel turns that inside out: *one thread per pixel* does all of it
# for its $K$ numbers, with plain loops. Arrays are flat in CUDA: the logits of pixel `p` are
# `logits[p * K]` to `logits[p * K + K - 1]`.
#
# Write the body, as one text in quotes. CUDA is C++, of which you need little: `exp` and `max` are
# there; a number is declared as `REAL sum = 0;`, a loop is `for (int k = 0; k < K; k++) { ... }`,
# and every statement ends in a semicolon; `(k == target[p])` is 1 or 0. (No pixel is ignored.)

# %%
GRADIENT = r"""
__global__ void gradient_kernel(const REAL* logits, const int* target, REAL* dlogits,
                                REAL dloss, int P, int K) {
#line 1 "your lines"
BODY
}
"""


# %% tags=["exercise-16.2"]
def gradient_body():
    """Return the lines of `gradient_kernel`, a str of CUDA text.

    logits (P, K), target (P), dlogits (P, K) to be written; dloss a number. One thread per pixel.
    """
    ### BEGIN SOLUTION
    return r"""
    const int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= P) return;
    const REAL* z = logits + p * K;
    REAL largest = z[0];
    for (int k = 1; k < K; k++) largest = max(largest, z[k]);
    REAL sum = 0;
    for (int k = 0; k < K; k++) sum += exp(z[k] - largest);
    for (int k = 0; k < K; k++)
      dlogits[p * K + k] = dloss / P * (exp(z[k] - largest) / sum - (k == target[p]));
    """
    ### END SOLUTION


# %% tags=["check-16.2"]
def gradient_by(body):
    """Return a function that computes dlogits by a kernel with these lines."""
    def dlogits_of(dloss, logits, target):
        lines = body()
        if lines is None:
            return None
        dlogits = np.full_like(logits, np.nan)  # what is not written shows
        threads = 32
        launch(compiled(GRADIENT.replace("BODY", lines.strip("\n"))), "gradient_kernel",
               -(-target.size // threads), threads, logits=logits, target=target,
               dlogits=dlogits, dloss=dloss, P=target.size, K=logits.shape[-1])
        return dlogits
    return dlogits_of


logits = rng.standard_normal((2, 5, 4, 3))
logits[0, 0, 0] += 1000  # exp(1000) is more than a double can hold
logits[0, 0, 1] -= 1000  # and exp(-1000) is 0 in a double
target = rng.integers(0, 3, (2, 5, 4)).astype(np.int32)


def by_steps(dloss, logits, target):
    """The right answer, in NumPy."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs = exp / exp.sum(axis=-1, keepdims=True)
    return dloss / target.size * (probs - np.eye(logits.shape[-1])[target])


check("16.2", gradient_by(gradient_body), {"logits": logits, "target": target},
      forward=lambda logits, target: losses.cross_entropy_forward(logits, target)[0],
      wrt=["logits"], torch=lambda torch, logits, target: torch.nn.functional.cross_entropy(
          logits.permute(0, 3, 1, 2), target.long()),
      quantities={"the number of pixels, P": target.size},
      slips={"the true class is not taken away: [k == y] is missing": lambda dloss, logits, target:
             by_steps(dloss, logits, target)
             + dloss / target.size * np.eye(logits.shape[-1])[target],
             "class k of pixel p stands at p * K + k: the classes of a pixel are neighbours":
             lambda dloss, logits, target: np.moveaxis(
                 by_steps(dloss, logits, target), -1, 0).reshape(logits.shape),
             "the probability, not the exponential: divide by the sum":
             lambda dloss, logits, target: dloss / target.size * (
                 np.exp(logits - logits.max(axis=-1, keepdims=True))
                 - np.eye(logits.shape[-1])[target])},
      hints={"named": "",
             "nan": "dlogits is full of NaN before the launch, so this may be an element that no "
                    "thread wrote; or an exp that overflowed, or a sum of exps that are all 0: "
                    "subtract the largest logit first",
             "zero": "In C++ a division of two ints rounds: 1 / P is 0. Write dloss / P",
             "sign": "What the network said comes first: p - [k == y].",
             "": "Who am I (p)? Have I a pixel (p < P)? Then three loops over k: the maximum, the "
                 "sum of the exponentials, the K results."})

# %% [markdown]
# ## Threads that work together: shared memory
#
# So far no thread needed another. A sum does: the mean loss over all pixels is one number. Threads
# of one block can pass numbers to each other through *shared memory*, a small fast array that the
# block has for itself. Half of the threads add the number of a partner to their own, then half of
# the half, until one is left. In NumPy the tree looks like this:

# %%
row = np.arange(1.0, 9.0)
half = len(row) // 2
while half:
    row[:half] += row[half:2 * half]
    print(f"after adding {half} partner{'s' if half > 1 else ''}: {row}")
    half //= 2

# %% [markdown]
# One thing is hidden in it. NumPy finishes a line before it begins the next. Threads do not: one
# may be in its third round while its partner has not begun the first. `__syncthreads()` is a
# *barrier*: every thread of the block waits there until all have come. Two rules follow.
#
# * Between writing shared memory and reading what *another* thread wrote, there must be a barrier.
# * *All* threads of the block must come to it. None may have returned before, none may go round it
#   in an `if`.
#
# Here is a kernel that turns each block's numbers round, with the barrier and without it. The
# emulator runs the threads one after the other, each up to the next barrier, in an order that can
# be chosen. And it fills shared memory with NaN beforehand:

# %%
turn = compiled(r"""
__global__ void turn_kernel(const REAL* x, REAL* out) {
  __shared__ REAL row[8];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = row[7 - threadIdx.x];
}

__global__ void turn_without_barrier_kernel(const REAL* x, REAL* out) {
  __shared__ REAL row[8];
  row[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = row[7 - threadIdx.x];
}
""")
x, out = np.arange(8.0), np.empty(8)
for name in ("turn_kernel", "turn_without_barrier_kernel"):
    for order in ("forward", "reverse"):
        with fiber_order(order):
            if attempt(turn, name, 1, 8, x=x, out=out):
                print(f"{name}, threads in {order} order: {out}")

# %% [markdown]
# On a GPU the second one may be right for years: these eight threads are in one warp, which often
# runs in step. Then the block gets larger, or the compiler newer. The emulator's rule is simple:
# **a result that changes with the order of the threads lacks a barrier.**
#
# ## Exercise 16.3: the sum of a block
#
# Each thread puts its number into `row`, or 0 if there is none left for it (`i < n ? x[i] : 0`
# is the one or the other). Then the tree: `for (int half = blockDim.x / 2; half > 0; half /= 2)`
# goes through its rounds. In the end one thread writes the block's sum. (The sums of the blocks
# are added up by a second launch, or in NumPy.)

# %%
SUM = r"""
__global__ void sum_kernel(const REAL* x, REAL* sums, int n) {
  __shared__ REAL row[64];  // as many as there are threads in a block
#line 1 "your lines"
BODY
}
"""


# %% tags=["exercise-16.3"]
def sum_body():
    """Return the lines of `sum_kernel`, a str of CUDA text.

    x (n) is summed: the sum of the elements of block b goes to sums[b]. blockDim.x is 64.
    """
    ### BEGIN SOLUTION
    return r"""
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x;
    row[t] = i < n ? x[i] : 0;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
      if (t < half) row[t] += row[t + half];
      __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = row[0];
    """
    ### END SOLUTION


# %% tags=["check-16.3"]
def sums_by(body):
    """Return a function that computes the sums in three orders of the threads, one per row."""
    def sums_of(x):
        lines = body()
        if lines is None:
            return None
        kernels = compiled(SUM.replace("BODY", lines.strip("\n")))
        sums = np.full((3, -(-x.size // 64)), np.nan)  # what is not written shows
        for row, order in zip(sums, ("forward", "reverse", "random")):
            with fiber_order(order):
                launch(kernels, "sum_kernel", len(row), 64, x=x, sums=row, n=x.size)
        return sums
    return sums_of


def sums_of_blocks(x):
    """The right sums, three times."""
    return np.tile([x[start:start + 64].sum() for start in range(0, x.size, 64)], (3, 1))


check("16.3", sums_by(sum_body), {"x": rng.standard_normal(150)}, expected=sums_of_blocks,
      slips={"this is one thread's number of each block: nothing has been added to it":
             lambda x: np.tile(x[::64], (3, 1)),
             "these are the even places: the last round, half = 1, is missing": lambda x: np.tile(
                 [x[start:start + 64:2].sum() for start in range(0, x.size, 64)], (3, 1))},
      hints={"named": "",
             "nan": "Shared memory is NaN before the block begins, and sums before the launch. "
                    "Either nobody wrote a block's sum (each has a place of its own), or somebody "
                    "read what was not written: has every thread filled its place, with 0 if it "
                    "has no element? Where must all wait for all?",
             "places": "Axis 0 is the order of the threads (forward, reverse, random): what is "
                       "right in some orders only lacks a __syncthreads(), or several threads "
                       "write to one place. Axis 1 is the block: what is right in some blocks "
                       "only has not asked for blockIdx.x",
             "": "Fill row (0 beyond n), barrier; then, while half > 0: the threads below half "
                 "add, all wait; at last thread 0 writes row[0] to sums[blockIdx.x]."})

# %% [markdown]
# The package adds up in this way, too; there the 32 threads of a warp exchange their numbers
# without shared memory (`block_sum` in `minisegnet/cuda/common.h`).
#
# ## What the one kernel saves: passes over memory
#
# A GPU calculates much faster than it reads. What counts for an operation as light as this one is
# how often the large arrays, those of $P \cdot K$ numbers, travel between memory and processor.

# %%
steps = [("logits.max(axis=-1)", 1, 0), ("logits - largest", 1, 1), ("exp(...)", 1, 1),
         ("exp.sum(axis=-1)", 1, 0), ("exp / sum", 1, 1), ("probs - onehot", 1, 1),
         ("... * (dloss / P)", 1, 1)]
read, written = (sum(step[i] for step in steps) for i in (1, 2))
rows = [("in NumPy", "read", "written"), *((name, str(r), str(w)) for name, r, w in steps),
        ("together", str(read), str(written)), ("in one kernel", "1", "1")]
print("\n".join(ruled(rows)))
print(f"\n{read + written} passes against 2")

# %% [markdown]
# (The kernel's thread looks at its $K$ logits three times; but shortly one after the other, so the
# second and third time they come from the cache.) This is called *fusing*, and it is the reason
# for writing kernels at all where an array library has every single step.
#
# ## The experiment: who reads what
#
# One knob: the number of channels $C$ of an NHWC array, seen as $(P, C)$. Every element is read by
# one thread, and there are two ways to hand them out: neighbouring threads take neighbouring
# channels, or neighbouring pixels. The kernel does not read at all, it notes the place that each
# thread *would* read. Then the sectors can be counted in NumPy: 8 numbers of 4 bytes each.

# %% tags=["experiment"]
places = compiled(r"""
__global__ void places_kernel(int* place, int P, int C, bool neighbours_are_pixels) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= P * C) return;
  const int p = neighbours_are_pixels ? i % P : i / C;
  const int c = neighbours_are_pixels ? i / P : i % C;
  place[i] = p * C + c;
}
""")
WARP, SECTOR = 32, 8  # threads; numbers of 4 bytes in 32 bytes
P, knob = 64, (1, 2, 4, 8, 16, 32, 64)
ways = {"neighbours are channels": False, "neighbours are pixels": True}
fetched, first_warp = {name: [] for name in ways}, {}
for C, (name, are_pixels) in product(knob, ways.items()):
    place = np.full(P * C, -1, np.int32)
    if not attempt(places, "places_kernel", P * C // WARP, WARP, place=place, P=P, C=C,
                   neighbours_are_pixels=are_pixels):
        break
    assert (np.sort(place) == np.arange(P * C)).all()  # each element has one thread
    warps = place.reshape(-1, WARP)
    fetched[name].append(np.mean([len(np.unique(warp // SECTOR)) for warp in warps]))
    if C == SECTOR:
        first_warp[name] = warps[0]

if len(first_warp) == len(ways):
    rows = [("channels", *(f"{name}: sectors per warp" for name in ways))]
    rows += [(str(C), *(f"{fetched[name][i]:g}" for name in ways)) for i, C in enumerate(knob)]
    print("\n".join(ruled(rows)))
    plots.show(thread_addresses(first_warp, SECTOR), "16_numpy_to_cuda")
    plots.show(over_a_knob("channels C", knob, [
        Panel("what 32 threads fetch at once", "sectors of 32 bytes per warp", fetched)]),
        "16_numpy_to_cuda_sectors")

# %% [markdown]
# That answers the question at the top: 4 sectors and 32. In the picture every sector that is
# fetched is coloured, for $C = 8$. When neighbours are pixels, each thread has a sector fetched
# for a single number: eight times the traffic for the same work. The other way of reading is
# called *coalesced*, and in NHWC it is for free as long as neighbouring threads hold neighbouring
# channels. Look at the first lines of `minisegnet/ops/depthwise_conv2d.cu`: most kernels of the
# package begin with this decision.
#
# Your gradient kernel, by the way, has neighbouring threads at neighbouring pixels. With $K$ = 12
# classes its reads are scattered, and only the cache helps. The package lets several threads share
# a pixel (`minisegnet/losses/softmax.cu`).
#
# With a GPU and CuPy, `KernelFile.launch` takes CuPy arrays, and the same texts run there. What
# the emulator cannot tell is the speed.
#
# ## To think about
#
# **1.** In the tree, could the barrier stand inside the `if`, so that only those wait who have
# added?
#
# <details><summary>Answer</summary>
#
# No. All threads of the block must come to a barrier. Those that go round it are waited for in
# vain (or are taken to have come at the next barrier, which is worse). Try it: the emulator names
# the thread that waits.
#
# </details>
#
# **2.** `if (i >= n) return;` is right at the top of the first kernel. Why not in the sum?
#
# <details><summary>Answer</summary>
#
# There a thread without an element still has its place in `row`, and must come to the barriers. It
# brings a 0 and stays.
#
# </details>
#
# **3.** The tree's sum and that of a loop, one number after the other, may differ in the last
# digits, although both are right. Why, and which one is to be trusted more?
#
# <details><summary>Answer</summary>
#
# Additions of floating-point numbers are rounded, so their order matters. A tree adds numbers of
# similar size, and each of $n$ numbers goes through $\log_2 n$ additions, not up to $n$ of them:
# the rounding errors stay small. That is why NumPy's `sum` adds in pairs, too.
#
# </details>
