"""DrawnTokens: what steps have drawn on the device, on its way to the host beside the steps that follow.

Knows the sampler's output and what an answer looks like; nothing of how either came about.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.step import ModelRunnerOutput
from octavo.kernels.sampled_row import ALL_MASKED, OVERFLOW, Sampled
from octavo.kernels.sampled_row import NOT_FINITE as NOT_FINITE_CODE
from octavo.outputs import PositionLogprobs, TokenLogprob
from octavo.runner import sampler
from octavo.runner.device import Arrival, Device

_MESSAGES = {
    NOT_FINITE_CODE: sampler.NOT_FINITE,
    ALL_MASKED: sampler.ALL_MASKED,
    OVERFLOW: sampler.OVERFLOW,
}


@dataclass(frozen=True, slots=True)
class AwaitedRow:
    """A row that draws: its index in the step, its place among those that draw, and how many logprobs it wants."""

    index: int
    place: int
    num_best: int | None


class DrawnTokens:
    """A ring of copies on the device and in pinned memory. Owns both.

    The sampler writes to one place, which the next step overwrites: each step's part is copied away on the device, in
    the order of the steps, and from there to the host beside them.
    """

    def __init__(self, device: Device, max_num_seqs: int, num_slots: int) -> None:
        num_words = Sampled.num_words(max_num_seqs)
        self._device = device
        self._max_num_seqs = max_num_seqs
        self._copies = torch.zeros(num_slots, num_words, dtype=torch.int64, device=device.torch_device)
        self._pinned = [device.pinned(num_words) for _ in range(num_slots)]
        self._turn = -1

    def begin(self, with_logprobs: bool) -> DrawnStep:
        """Where the next step's tokens go; `num_slots` steps later the place is another's."""
        self._turn = (self._turn + 1) % len(self._pinned)
        num_words = Sampled.num_words(self._max_num_seqs, with_logprobs)
        return DrawnStep(
            self._device, self._copies[self._turn][:num_words], self._pinned[self._turn], self._max_num_seqs
        )


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """One step's place in the ring."""

    device: Device
    copy: Tensor
    pinned: Tensor
    max_num_seqs: int

    def keep(self, drawn_words: Tensor) -> None:
        """Part of the step's launched work, after the sampler: what it drew is copied away."""
        self.copy.copy_(drawn_words[: len(self.copy)])

    def fetch(self) -> Arrival:
        """Begins the copy to the host, after what was launched so far."""
        return self.device.fetch(self.copy, self.pinned[: len(self.copy)])

    def add_to(self, output: ModelRunnerOutput, awaited: list[AwaitedRow]) -> None:
        """After the arrival: the rows' tokens, logprobs and failures."""
        drawn = Sampled.over(self.pinned, self.max_num_seqs)
        token_ids, failed = drawn.token_ids.tolist(), drawn.failed.tolist()
        for row in awaited:
            if failed[row.place]:
                output.failed[row.index] = _MESSAGES[failed[row.place]]
                continue
            output.sampled_token_ids[row.index].append(token_ids[row.place])
            if row.num_best is not None:
                output.logprobs[row.index] = [_logprobs(drawn, row)]


def _logprobs(drawn: Sampled, row: AwaitedRow) -> PositionLogprobs:
    """The chosen token first, then the best ones without it."""
    assert row.num_best is not None
    place = row.place
    chosen = int(drawn.token_ids[place])
    found = [TokenLogprob(chosen, float(drawn.logprobs[place]), int(drawn.ranks[place]))]
    columns = (part[place, : row.num_best].tolist() for part in (drawn.best_ids, drawn.best_logprobs, drawn.best_ranks))
    found += [TokenLogprob(*best) for best in zip(*columns, strict=True) if best[0] not in (chosen, -1)]
    return found
