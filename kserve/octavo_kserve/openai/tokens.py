"""Text and chats to token ids and back, without running the model."""

from __future__ import annotations

import asyncio
from typing import Any

import octavo
from octavo_kserve.openai.chat_request import read_chat_prompt
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import find_model
from octavo_kserve.openai.tool_choice import read_tool_choice
from octavo_kserve.served_model import Models

_MOST_TOKENS = 1 << 20


async def tokenize(fields: Fields, models: Models) -> dict[str, Any]:
    """The token ids of `prompt`, or of `messages` as the model's template writes them."""
    served, _ = find_model(fields, models)
    tokenizer = served.engine.tokenizer
    chats, adds_special = fields.get("messages") is not None, fields.get("add_special_tokens")
    if adds_special is not None:
        adds_special = octavo.parse_bool("add_special_tokens", adds_special)
    if chats and adds_special:
        raise octavo.InvalidRequest("add_special_tokens", True, "false for a chat: its template writes them")
    prompt = read_chat_prompt(fields, read_tool_choice(fields)) if chats else fields.text("prompt") or ""
    with_texts = fields.flag("return_token_strs")
    fields.log_unknown()
    if isinstance(prompt, str) and adds_special is False:
        token_ids = await asyncio.to_thread(tokenizer.encode, prompt, add_special_tokens=False)
    else:
        token_ids = await asyncio.to_thread(served.engine.tokenize, prompt)
    return {
        "count": len(token_ids),
        "max_model_len": served.engine.config.max_model_len,
        "tokens": token_ids,
        "token_strs": [tokenizer.token_text(token_id) for token_id in token_ids] if with_texts else None,
    }


async def detokenize(fields: Fields, models: Models) -> dict[str, Any]:
    """The text of `tokens`, special ones included."""
    served, _ = find_model(fields, models)
    tokenizer, values = served.engine.tokenizer, fields.get("tokens")
    if not isinstance(values, list) or len(values) > _MOST_TOKENS:
        raise octavo.InvalidRequest("tokens", values, f"a list of at most {_MOST_TOKENS} token ids")
    highest = tokenizer.vocab_size - 1
    token_ids = [octavo.parse_int(f"tokens[{i}]", value, 0, highest) for i, value in enumerate(values)]
    fields.log_unknown()
    return {"prompt": await asyncio.to_thread(tokenizer.decode, token_ids, skip_special_tokens=False)}
