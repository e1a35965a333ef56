"""Logprobs of prompts: which positions of a step predict which prompt tokens, and what they say of them.

Knows rows and logits; where the logits come from is the runner's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.core.step import SchedulerOutput
from octavo.outputs import PositionLogprobs
from octavo.runner.input_batch import InputBatch, StepArrays
from octavo.runner.logprobs import position_logprobs
from octavo.runner.sampling_row import Tokens


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Row `index` of a step asks: the step's tokens [begin, begin + len(targets)) predict `targets`, int32 [n]."""

    index: int
    begin: int
    targets: Tokens
    num_best: int

    def logprobs(self, logits: Iterable[NDArray[np.float32]]) -> list[PositionLogprobs] | None:
        """One entry a token, from its logits, fp32 [V] each; None if they are not finite."""
        found: list[PositionLogprobs] = []
        for target, row in zip(self.targets.tolist(), logits, strict=True):
            if not np.isfinite(row.max()):
                return None
            found.append(position_logprobs(row, target, self.num_best))
        return found


def prompt_spans(step: SchedulerOutput, arrays: StepArrays, batch: InputBatch) -> Iterator[PromptSpan]:
    """The parts of a step that predict prompt tokens, of the rows that ask for their logprobs."""
    for index, row in enumerate(step.rows):
        if not batch.wants_prompt_logprobs[row]:
            continue
        first = step.num_computed_tokens[index]
        last = min(first + step.num_scheduled_tokens[index], int(batch.num_prompt_tokens[row]) - 1)
        num_best = batch.new_row(row).params.prompt_logprobs
        assert num_best is not None
        if first < last:
            targets = batch.token_ids[row, first + 1 : last + 1]
            yield PromptSpan(index, int(arrays.cu_seqlens_q[index]), targets, num_best)
