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
        self._token_s: float | None = None

    def observe(self, num_scheduled_tokens: list[int], duration_s: float) -> None:
        """A step took so long. Rows of one token are streams, all others prompts."""
        num_prompt_tokens = sum(count for count in num_scheduled_tokens if count > 1)
        size = num_scheduled_tokens.count(1).bit_length()
        if num_prompt_tokens == 0:
            self._plain_s[size] = _average(self._plain_s.get(size), duration_s)
        elif num_prompt_tokens >= _FEWEST_OBSERVED:
            if size and size not in self._plain_s and self._token_s:
                # While prompts keep coming there is no step without them: what is left says what the streams cost.
                self._plain_s[size] = max(duration_s - num_prompt_tokens * self._token_s, self._plain(size))
                return
            added_s = max(duration_s - self._plain(size), 0.0) if size else duration_s
            self._token_s = _average(self._token_s, added_s / num_prompt_tokens)

    def num_prompt_tokens(self, num_streams: int) -> int | None:
        """How many tokens of prompts a step with so many streams in it may take; None for as many as there are."""
        size = num_streams.bit_length()
        limit_s = self._limit_s
        if limit_s is None and self._slowdown is not None and size in self._plain_s:
            limit_s = self._slowdown * self._plain_s[size]
        if not size or limit_s is None or not self._token_s:
            return None
        return max(int((limit_s - self._plain(size)) / self._token_s), _FEWEST_TOKENS)

    def _plain(self, size: int) -> float:
        """Seconds of a step without prompts: more streams take at least as long as fewer. 0 where nothing is known."""
        return max((seconds for known, seconds in self._plain_s.items() if known <= size), default=0.0)


def _average(known: float | None, observed: float) -> float:
    return observed if known is None else known + _SHARE * (observed - known)
