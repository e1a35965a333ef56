"""What may be asked of a model: a text, token ids, chat messages, a pair of texts. Knows no template, no tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Chat messages for the model's own template, and what goes with them.

    `messages` and `tools` are as in the OpenAI API; they are checked when the prompt is rendered. `template_kwargs`
    are further variables for the template. With `continue_final_message` the prompt ends where the last message does,
    for the model to write on there; `add_generation_prompt` then has no meaning. `marks` are texts that an answer shows
    even where special tokens that are written so are left out of it.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    marks: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class TextPair:
    """A query and a document, for a model that reads both at once and scores how well they go together."""

    query: str
    document: str


# A bare list of messages is a ChatPrompt without anything else.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | ChatPrompt | TextPair
