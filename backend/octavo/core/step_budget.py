"""StepBudget: how many tokens of prompts a step may take beside running streams, so that these do not wait too long.

Learns from how long steps took; reads no clock. Knows counts and seconds, no sequence.
"""

from __future__ import annotations

# How much a new observation counts: a cost that has changed is followed within some ten steps.
_SHARE = 0.2
# Fewer tokens say little of what one costs.
_FEWEST_OBSERVED = 16
# A prompt goes on even where the budget leaves nothing.
_FEWEST_TOKENS = 16
# Steps with prompts after which the streams run one step alone, so that it is known what that takes now.
_STEPS_BETWEEN_PROBES = 64
_LEAST_TOKEN_S = 1e-9


class StepBudget:
    """Owns averages: seconds that a prompt's token adds to a step, and seconds of a step without prompts, by the number
    of streams to the next power of two.

    duration of a step   [ streams' tokens: plain_s ][ prompts' tokens: token_s each ............... ] limit
    """

    def __init__(self, limit_s: float | None = None, slowdown: float | None = None) -> None:
        """limit_s: seconds that a step with streams in it may take. slowdown: where there is no limit_s, how many times
        as long as a step without prompts. Without both as many tokens as there are may go into a step."""
        self._limit_s = limit_s
        self._slowdown = slowdown
        self._plain_s: dict[int, float] = {}
        self._num_since_plain: dict[int, int] = {}
        self._token_s: float | None = None

    def observe(self, num_scheduled_tokens: list[int], duration_s: float) -> None:
        """A step took so long. Rows of one token are streams, all others prompts."""
        num_prompt_tokens = sum(count for count in num_scheduled_tokens if count > 1)
        size = num_scheduled_tokens.count(1).bit_length()
        if num_prompt_tokens == 0:
            # What disturbs a step makes it longer, never shorter.
            known_s = self._plain_s.get(size, duration_s)
            self._plain_s[size] = min(_average(known_s, duration_s), duration_s)
            self._num_since_plain[size] = 0
            return
        self._num_since_plain[size] = self._num_since_plain.get(size, 0) + 1
        if num_prompt_tokens >= _FEWEST_OBSERVED and (not size or size in self._plain_s):
            added_s = max(duration_s - self._plain_s.get(size, 0.0), 0.0) if size else duration_s
            self._token_s = _average(self._token_s, added_s / num_prompt_tokens)

    def num_prompt_tokens(self, num_streams: int) -> int | None:
        """How many tokens of prompts a step with so many streams in it may take; None for as many as there are.

        0 now and then, so that the streams run alone and it is seen what they take.
        """
        size = num_streams.bit_length()
        if not size or (self._limit_s is None and self._slowdown is None):
            return None
        plain_s = self._plain_s.get(size)
        if plain_s is None or self._num_since_plain[size] >= _STEPS_BETWEEN_PROBES:
            return 0
        if self._token_s is None:
            return None
        limit_s = (self._slowdown or 1.0) * plain_s if self._limit_s is None else self._limit_s
        return max(int((limit_s - plain_s) / max(self._token_s, _LEAST_TOKEN_S)), _FEWEST_TOKENS)


def _average(known: float | None, observed: float) -> float:
    return observed if known is None else known + _SHARE * (observed - known)
