"""RequestTimes: when one request arrived, was scheduled and got its tokens, and what the histograms are told of it.

Reads no clock: every time is given, in monotonic seconds.
"""

from __future__ import annotations

from dataclasses import replace

from octavo.outputs import EngineOutput, Timing
from octavo.request import EngineRequest
from octavo.stats import Observations


class RequestTimes:
    """Owned by the request's front, so it outlives engine processes: what was known before a crash stays.

    `timing` is what is known so far, None before the first token.
    """

    __slots__ = ("_arrived_at", "_first_token_at", "_last_token_at", "_request", "timing")

    def __init__(self, request: EngineRequest, arrived_at: float) -> None:
        self.timing: Timing | None = None
        self._request = request
        self._arrived_at = arrived_at
        self._first_token_at = 0.0
        self._last_token_at: list[float | None] = [None] * request.params.n

    def see_tokens(self, new: EngineOutput, num_tokens: int, now: float, seen: Observations) -> None:
        """One of its sequences got `num_tokens`, at least one; several at once share the time since the last evenly."""
        if self.timing is None:
            self._see_first_token(new.scheduled_at, now, seen)
        last = self._last_token_at[new.index]
        self._last_token_at[new.index] = now
        if last is None:
            seen.time_per_output_token_s += [0.0] * (num_tokens - 1)
        else:
            seen.time_per_output_token_s += [(now - last) / num_tokens] * num_tokens

    def see_embedding(self, scheduled_at: float | None, now: float, seen: Observations) -> None:
        """The vector of a request that brings no token."""
        assert scheduled_at is not None, "the engine names it with the vector"
        e2e_s = now - self._arrived_at
        self.timing = Timing(queue_s=scheduled_at - self._arrived_at, prefill_s=now - scheduled_at, e2e_s=e2e_s)
        seen.queue_s.append(scheduled_at - self._arrived_at)
        seen.prefill_s.append(now - scheduled_at)
        seen.e2e_s.append(e2e_s)
        seen.num_prompt_tokens.append(len(self._request.prompt_token_ids))

    def see_end(self, now: float, seen: Observations) -> None:
        """The request has ended. Counts once, and only if there was a token."""
        if self.timing is None or self.timing.e2e_s is not None:
            return
        decode_s = max(at for at in self._last_token_at if at is not None) - self._first_token_at
        e2e_s = now - self._arrived_at
        self.timing = replace(self.timing, decode_s=decode_s, e2e_s=e2e_s)
        seen.decode_s.append(decode_s)
        seen.e2e_s.append(e2e_s)

    def _see_first_token(self, scheduled_at: float | None, now: float, seen: Observations) -> None:
        assert scheduled_at is not None, "the engine names it with the first token"
        self._first_token_at = now
        self.timing = Timing(
            queue_s=scheduled_at - self._arrived_at,
            prefill_s=now - scheduled_at,
            time_to_first_token_s=now - self._arrived_at,
        )
        seen.queue_s.append(scheduled_at - self._arrived_at)
        seen.prefill_s.append(now - scheduled_at)
        seen.time_to_first_token_s.append(now - self._arrived_at)
        seen.num_prompt_tokens.append(len(self._request.prompt_token_ids))
        seen.params_n.append(self._request.params.n)
