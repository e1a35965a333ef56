"""transformers' continuous batching (paged cache), as its `generate_batch` runs it, with a length for each request.

What it cannot do here (memory, a missing kernel) is raised as Refused: that is no failure of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from gpu_requests import Item

_LIMIT_S = 100.0


class Refused(Exception):
    """transformers does not run this here."""


class ContinuousBatching:
    """One manager for several runs: making its cache and graphs is no part of what is timed. Owns it while entered."""

    def __init__(self, model: Any, requests: Sequence[Item], **settings: int) -> None:
        """Sized for `requests`, as generate_batch sizes it. settings: of its ContinuousBatchingConfig."""
        self.attention = ""
        self._model = model
        self._requests = requests
        self._settings = settings
        self._manager: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> ContinuousBatching:
        from transformers import ContinuousBatchingConfig, GenerationConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints

        hints = WorkloadHints(
            max_prompt_length=max(len(item.prompt_token_ids) for item in self._requests),
            max_generated_length=max(item.num_output_tokens for item in self._requests),
            num_requests=len(self._requests),
        )
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        # Its thread and this one write the same tensors: all outside inference mode.
        self._stack.enter_context(torch.inference_mode(False))
        self._stack.enter_context(torch.no_grad())
        try:
            entered = self._model.continuous_batching_context_manager(
                generation_config=greedy,
                continuous_batching_config=ContinuousBatchingConfig(**self._settings),
                workload_hints=hints,
            )
            self._manager = self._stack.enter_context(entered)
        except Exception as error:
            self._stack.close()
            raise Refused(f"{type(error).__name__}: {error}") from error
        self.attention = self._model.config._attn_implementation
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(self, requests: Sequence[Item], most: int | None) -> float:
        """All at once; seconds until the last is done. Of each at most `most` tokens."""
        begin = perf_counter()
        left = {}
        for item in requests:
            count = item.num_output_tokens if most is None else min(most, item.num_output_tokens)
            left[self._manager.add_request(item.prompt_token_ids, max_new_tokens=count)] = count
        while left:
            result = self._manager.get_result(timeout=1)
            if result is None:
                self._check(begin)
            elif result.is_finished():
                wanted = left.pop(result.request_id)
                if result.error is not None or len(result.generated_tokens) != wanted:
                    raise Refused(f"{len(result.generated_tokens)} of {wanted} tokens, {result.error}")
        return perf_counter() - begin

    def _check(self, begin: float) -> None:
        if not self._manager.is_running():
            raise Refused("its thread has ended; its own message is above")
        if perf_counter() - begin > _LIMIT_S:
            raise Refused(f"not done after {_LIMIT_S:g} s")
