"""What the tests of row-wise kernels share: random rows, and an operation in the interpreter."""

import numpy as np
import torch
from kernels.triton_support import interpreted


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(operation, *arguments):
    # Infinities and what is not a number are part of the tests.
    with interpreted(), np.errstate(all="ignore"):
        return operation(*arguments)
