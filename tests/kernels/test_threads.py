"""The pool behind the C kernels gives every task to exactly one thread, whoever calls and whenever."""

import shutil
import subprocess
import sys
import threading

import pytest
import torch

from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

FORK = """
import os, torch
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference
torch.set_num_threads(2)
x = torch.randn(64, 4096)
before = silu_and_mul(x)
child = os.fork()
same = torch.equal(silu_and_mul(x), before)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_more_threads_than_cores_compute_the_same(num_threads):
    x = torch.randn(64, 4096)
    wanted = silu_and_mul(x)
    torch.set_num_threads(num_threads)
    for _ in range(200):
        assert torch.equal(silu_and_mul(x), wanted)


def test_callers_at_the_same_time_do_not_disturb_each_other():
    torch.set_num_threads(2)
    inputs = [torch.randn(64, 2048) for _ in range(4)]
    wanted = [silu_and_mul_reference(x) for x in inputs]
    worst = [float("inf")] * 4

    def call(i):
        torch.set_num_threads(2)
        worst[i] = max(float((silu_and_mul(inputs[i]) - wanted[i]).abs().max()) for _ in range(100))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert max(worst) < 1e-5


@pytest.mark.slow
def test_a_forked_process_has_threads_of_its_own():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
