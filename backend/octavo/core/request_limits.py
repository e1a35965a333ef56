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
        _check_room(num_prompt_tokens, kv_cache_manager)
        return request
    if num_prompt_tokens >= context:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens; with one more for the output that is over the context of "
            f"{context} tokens (max_model_len)"
        )
    max_tokens = min(request.params.max_tokens or context, context - num_prompt_tokens)
    # The last token needs no slot: nothing follows it.
    _check_room(num_prompt_tokens + max_tokens - 1, kv_cache_manager)
    return replace(request, params=request.params.with_max_tokens(max_tokens))


def _check_room(num_tokens: int, kv_cache_manager: KVCacheManager) -> None:
    needed = kv_cache_manager.num_blocks_for(num_tokens)
    available = kv_cache_manager.pool.num_blocks - 1
    if needed > available:
        raise PromptTooLong(
            f"prompt and output together need {needed} KV blocks of {kv_cache_manager.block_size} tokens, the cache "
            f"has {available}: shorten the prompt, lower max_tokens or give the KV cache more memory"
        )
