"""What a request may need at most, checked before it enters: it ends within the context and fits an empty KV cache."""

from __future__ import annotations

from dataclasses import replace

from octavo.core.kv_cache_manager import KVCacheManager
from octavo.errors import InvalidRequest, PromptTooLong
from octavo.request import EngineRequest


def limited(request: EngineRequest, context: int, kv_cache_manager: KVCacheManager) -> EngineRequest:
    """The request with a limit on its tokens that a context of so many can hold.

    Raises InvalidRequest or PromptTooLong when it can never run.
    """
    num_prompt_tokens = len(request.prompt_token_ids)
    if not num_prompt_tokens:
        raise InvalidRequest("prompt", "", "at least one token")
    if request.pooling is not None:
        if num_prompt_tokens > context:
            raise PromptTooLong(f"the prompt has {num_prompt_tokens} tokens; the context {context} (max_model_len)")
        _check_room(num_prompt_tokens, kv_cache_manager, "the prompt needs", "shorten it")
        return request
    if num_prompt_tokens >= context:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens; with one more for the output that is over the context of "
            f"{context} tokens (max_model_len)"
        )
    max_tokens = min(request.params.max_tokens or context, context - num_prompt_tokens)
    _check_emitted(request, max_tokens)
    # The last token needs no slot: nothing follows it.
    num_tokens = num_prompt_tokens + max_tokens - 1
    _check_room(num_tokens, kv_cache_manager, "prompt and output together need", "shorten the prompt, lower max_tokens")
    return replace(request, params=request.params.with_max_tokens(max_tokens))


def _check_emitted(request: EngineRequest, max_tokens: int) -> None:
    """Of a replay: a child that has all its tokens has ended, and would never be given a step."""
    for index, emitted in enumerate(request.emitted_token_ids):
        has_ended = bool(request.finished) and request.finished[index]
        if len(emitted) >= max_tokens and not has_ended:
            raise PromptTooLong(
                f"{len(emitted)} tokens of output are there already (child {index}); at most {max_tokens} may follow "
                f"the prompt of {len(request.prompt_token_ids)} tokens (max_tokens, max_model_len)"
            )


def _check_room(num_tokens: int, kv_cache_manager: KVCacheManager, needs: str, remedy: str) -> None:
    needed = kv_cache_manager.num_blocks_for(num_tokens)
    available = kv_cache_manager.pool.num_blocks - 1
    if needed > available:
        raise PromptTooLong(
            f"{needs} {needed} KV blocks of {kv_cache_manager.block_size} tokens, the cache has {available}: {remedy} "
            "or give the KV cache more memory"
        )
