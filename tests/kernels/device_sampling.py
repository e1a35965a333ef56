"""Runs the device's sampler in the interpreter on cases of the sampling contract, on poisoned memory."""

import contextlib
from dataclasses import fields
from unittest.mock import patch

import numpy as np
import torch
from kernels.triton_support import interpreted
from runner.reference_sampler import Case
from runner.sampling_driver import new_row_of, row_of

from octavo.kernels import truncated_draw
from octavo.kernels.sampling import SamplingScratch, sample
from octavo.kernels.sampling_tables import RowSampling, SamplingTables
from octavo.runner.row_sampling import row_sampling
from octavo.runner.sampler import Sampler


def poison(tensor):
    return tensor.fill_(float("nan") if tensor.is_floating_point() else -77)


def asked_by(case: Case) -> RowSampling:
    """What the tables hold of a case."""
    return row_sampling(new_row_of(case), len(case.logits))


class Device:
    """Tables and scratch for some cases of one vocabulary; case i has row `rows[i]`."""

    def __init__(self, cases, rows=None):
        self.cases = cases
        self.rows = list(range(len(cases))) if rows is None else rows
        vocab_size = len(cases[0].logits)
        self.tables = SamplingTables.allocate(max(self.rows) + 1, vocab_size, "cpu")
        self.scratch = SamplingScratch.allocate(len(cases), vocab_size, "cpu")
        for table in (self.tables, self.scratch):
            for field in fields(table):
                poison(getattr(table, field.name))
        for row, case in zip(self.rows, cases, strict=True):
            if row >= 0:
                self.tables.set_row(row, asked_by(case))

    def sample(self, dtype=torch.float32):
        logits = torch.tensor(np.array([case.logits for case in self.cases]), dtype=dtype)
        positions = torch.tensor([len(case.prompt) + len(case.output) for case in self.cases])
        with interpreted():
            return sample(logits, self.tables, self.scratch, positions, torch.tensor(self.rows, dtype=torch.int32))


@contextlib.contextmanager
def recorded_limits():
    """Collects (number listed, key of the edge, ties kept) of every truncated row, in order. Inside `interpreted`."""
    found, draw = [], truncated_draw._draw_listed

    def record(values, ids, count, edge, num_ties, *args):
        found.append(tuple(int(x.handle.data.item()) for x in (count, edge, num_ties)))
        return draw(values, ids, count, edge, num_ties, *args)

    with patch.object(truncated_draw, "_draw_listed", record):
        yield found


def tokens_left(case):
    """Ids that may be drawn from, ascending, by the limits that the device found."""
    device = Device([case])
    with interpreted(), recorded_limits() as found:
        device.sample()
    [(count, edge, num_ties)] = found
    keys = device.scratch.values[0, :count].abs().view(torch.int32)
    ids = device.scratch.ids[0, :count]
    ties = torch.nonzero(keys == edge)[:num_ties, 0]
    return sorted([*ids[keys < edge].tolist(), *ids[ties].tolist()])


def sample_on_cpu(cases):
    """The same cases through the CPU's sampler."""
    logits = torch.tensor(np.array([case.logits for case in cases]), dtype=torch.float32)
    tokens = [np.array(case.prompt + case.output, np.int32) for case in cases]
    return Sampler(logits.shape[1]).sample(logits, [row_of(case) for case in cases], tokens)
