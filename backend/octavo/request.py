"""EngineRequest: what the front hands to the engine. Token ids only; everything text-like has been resolved."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.pooling import Pooling
from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request, as it crosses the process boundary and as `Engine.add_request` takes it.

    `seed` is always set (the front draws one where the caller gave none), so that a replay continues the same
    stream. `stop_token_ids` holds EOS too, unless the caller ignores it. `emitted_token_ids` and `finished` are
    for replay: per child, the tokens it has already sent and whether it has ended; empty for a new request.
    `end_token_ids` are those that may end a text that follows a grammar, and do: EOS, ignored or not, and special stop
    tokens. A lower `priority` runs first. `cache_salt` separates prefix caches: only equal salts share blocks.
    With `pooling` the request brings a vector and no token; `params` then only say that it may have one.
    `token_type_ids` say which text of a pair each token of the prompt is of; empty where all are of the first.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    end_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: list[list[int]] = field(default_factory=list)
    priority: int = 0
    cache_salt: str = ""
    emitted_token_ids: list[list[int]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    pooling: Pooling | None = None
    token_type_ids: list[int] = field(default_factory=list)
