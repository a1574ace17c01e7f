"""The settings of the process: one BLAS thread, and memory that is kept for the next array."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import numpy as np
from minisegnet import process
if sys.argv[1] == "set up":
    process.set_up()
for i in range(40):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(12_000_000, np.uint8) for _ in range(4)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], capture_output=True,
                          text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="set for glibc on Linux only")
def test_freed_memory_is_used_again_without_page_faults():
    assert faults("set up") * 10 < faults("plain")


def test_numpys_blas_has_one_thread_afterwards():
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    code = ("from threadpoolctl import threadpool_info\n"
            "import numpy\nfrom minisegnet import process\nprocess.set_up()\n"
            "print([i['num_threads'] for i in threadpool_info()"
            " if i['internal_api'] == 'openblas'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {1}
