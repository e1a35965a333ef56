"""Admission: from a prompt and its parameters to an EngineRequest, or a refusal that names the parameter.

Everything text-like is resolved here: chat template, tokens, EOS, bad words, seed. Knows no process and no queue.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import InvalidRequest, PromptTooLong
from octavo.parsing import parse_int, parse_text
from octavo.pooling import Pooling, check_dimensions, read_pooling
from octavo.pooling_params import PoolingParams
from octavo.prompt import ChatPrompt, Prompt, TextPair
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.sentence_files import TextSettings, read_text_settings
from octavo.text.chat import render_chat, render_unfinished_chat
from octavo.text.tokenizer import Tokenizer, bad_words_token_ids

_SEED_BITS = 63
# A candidate costs about a microsecond of the step loop and half a kilobyte on its way: more would stop everybody.
_MAX_CANDIDATES = 1 << 22
# Hardly any text has more characters a token.
_MANY_CHARACTERS = 16
# Of a request that brings a vector: it ends where its first token would be sampled.
_NO_TOKENS = SamplingParams(temperature=0, max_tokens=1)


@dataclass(frozen=True, slots=True)
class Ticket:
    """How a request is named and treated, whatever its content. `number` tells apart requests that reuse an id."""

    request_id: str
    number: int
    priority: int = 0
    cache_salt: str = ""

    @property
    def wire_id(self) -> str:
        """Its id inside the engine: what comes late for an earlier request must not be mistaken for its own."""
        return f"{self.request_id}#{self.number}"


class Admission:
    """Checks and translates requests for one model. Any thread may call it.

    `max_model_len` (tokens) may be lowered once the engine knows what its KV cache can hold.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, config: EngineConfig) -> None:
        """`config` has been resolved."""
        assert config.max_model_len is not None
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._vocab_size = checkpoint.vocab_size
        self._eos_token_ids = checkpoint.eos_token_ids
        self.max_model_len = config.max_model_len
        self._seeds = random.Random(config.seed)
        self._model_name = config.served_model_name or Path(config.model or "").name.removesuffix(".gguf")
        # None: the model generates.
        self._pooling = read_pooling(checkpoint) if config.runner == "pooling" else None
        self._texts = TextSettings() if self._pooling is None else read_text_settings(checkpoint)

    @property
    def scores_pairs(self) -> bool:
        """Whether the model makes one score of a TextPair, and nothing of any other prompt."""
        return self._pooling is not None and self._checkpoint.is_cross_encoder

    def prepare(
        self, ticket: Ticket, prompt: Prompt, params: SamplingParams | PoolingParams
    ) -> tuple[EngineRequest, str | None]:
        """The request for the engine, and the prompt's text where it was not given as token ids.

        Raises InvalidRequest or PromptTooLong.
        """
        if isinstance(params, PoolingParams):
            return self._prepare_pooling(ticket, prompt, params)
        if self._pooling is not None:
            raise self._other_task("it does not generate text")
        self._check_vocabulary(params)
        text, token_ids = self._read_prompt(prompt, params.truncate_prompt_tokens is not None)
        token_ids = self._truncate(token_ids, params)
        params = self._limit(token_ids, params)
        self._check_num_candidates(len(token_ids), params)
        eos_token_ids = () if params.ignore_eos else self._eos_token_ids
        request = EngineRequest(
            request_id=ticket.wire_id,
            prompt_token_ids=token_ids,
            params=params,
            seed=self._seeds.getrandbits(_SEED_BITS) if params.seed is None else params.seed,
            stop_token_ids=tuple(dict.fromkeys(eos_token_ids + params.stop_token_ids)),
            end_token_ids=self._end_token_ids(params),
            bad_words_token_ids=bad_words_token_ids(self._tokenizer, params.bad_words) if params.bad_words else [],
            priority=parse_int("priority", ticket.priority),
            cache_salt=parse_text("cache_salt", ticket.cache_salt, allow_empty=True),
        )
        return request, text

    def _prepare_pooling(
        self, ticket: Ticket, prompt: Prompt, params: PoolingParams
    ) -> tuple[EngineRequest, str | None]:
        pooling = self._pooling_of(params, isinstance(prompt, TextPair))
        limit = params.truncate_prompt_tokens
        limit = self.max_model_len if limit is not None and limit < 0 else limit
        token_type_ids = list[int]()
        text = None
        if isinstance(prompt, TextPair):
            token_ids, token_type_ids = self._read_pair(prompt, self._prompt_of(params), limit)
        else:
            if params.prompt_name is not None and not isinstance(prompt, str):
                raise InvalidRequest("prompt_name", params.prompt_name, "null: nothing is put before what is no text")
            prompt = _behind(self._prompt_of(params), prompt)
            text, token_ids = self._read_prompt(prompt, limit is not None, limit)
            token_ids = token_ids[:limit]
        if len(token_ids) > self.max_model_len:
            raise PromptTooLong(
                f"prompt: {len(token_ids)} tokens are over the context of {self.max_model_len} tokens (max_model_len)"
            )
        request = EngineRequest(
            request_id=ticket.wire_id,
            prompt_token_ids=token_ids,
            params=_NO_TOKENS,
            seed=0,
            priority=parse_int("priority", ticket.priority),
            cache_salt=parse_text("cache_salt", ticket.cache_salt, allow_empty=True),
            pooling=pooling,
            token_type_ids=token_type_ids,
        )
        return request, text

    def _end_token_ids(self, params: SamplingParams) -> tuple[int, ...]:
        """What may end a text that follows a grammar: EOS, ignored or not, and stop tokens that are no part of it."""
        if params.structured_outputs is None:
            return ()
        # Made here, in the caller's own thread, since it takes a while the first time.
        special = self._tokenizer.vocabulary.special_token_ids
        stops = (token_id for token_id in params.stop_token_ids if token_id in special)
        return tuple(dict.fromkeys([*self._eos_token_ids, *stops]))

    def tokenizer_for(self, prompt: Prompt) -> Tokenizer:
        """What makes texts of the answers to `prompt`."""
        return self._tokenizer.showing(prompt.marks) if isinstance(prompt, ChatPrompt) else self._tokenizer

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, as `prepare` makes them before it truncates. Raises what that raises."""
        return self._read_prompt(_behind(self._texts.default_prompt, prompt), may_be_cut=False)[1]

    def _read_prompt(
        self, prompt: Prompt, may_be_cut: bool, max_tokens: int | None = None
    ) -> tuple[str | None, list[int]]:
        """Of a text, no more is read than makes `max_tokens` with what the model expects around it."""
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            prompt = ChatPrompt(prompt)  # type: ignore[arg-type]  # told apart by what it holds
        if isinstance(prompt, str):
            text = parse_text("prompt", prompt)
            self._check_length(text, may_be_cut)
            encode = self._tokenizer.encode
            token_ids = encode(text) if max_tokens is None else self._tokenizer.encode_beginning(text, max_tokens)
        elif isinstance(prompt, ChatPrompt):
            text = parse_text("messages", self._render(prompt))
            self._check_length(text, may_be_cut)
            token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            return None, self._check_token_ids(list(prompt))
        else:
            raise InvalidRequest("prompt", prompt, "a text, a list of token ids or a list of chat messages")
        if not token_ids:
            raise InvalidRequest("prompt", prompt, "a prompt of at least one token")
        self._check_known("prompt", text, token_ids)
        return text, token_ids

    def _read_pair(self, pair: TextPair, before: str, limit: int | None) -> tuple[list[int], list[int]]:
        """Token ids and which text each is of; with `limit` the document is cut, never the query."""
        texts = {"query": pair.query, "document": pair.document}
        for name, text in texts.items():
            self._check_length(parse_text(name, text), limit is not None)
        token_ids, token_type_ids = self._tokenizer.encode_pair(before + pair.query, pair.document, limit)
        if limit is not None and len(token_ids) > limit:
            raise PromptTooLong(
                f"query: it leaves no room for a document in {limit} tokens (truncate_prompt_tokens, max_model_len)"
            )
        self._check_known("document", pair.document, token_ids)
        num_types = self._checkpoint.num_token_types
        if max(token_type_ids, default=0) >= num_types > 1:
            raise InvalidRequest.worded(
                "model",
                f"model {self._model_name!r}: its tokenizer makes tokens of type {max(token_type_ids)}, of which "
                f"config.json has {num_types} (type_vocab_size)",
            )
        return token_ids, token_type_ids if num_types > 1 else []

    def _check_known(self, name: str, text: str | None, token_ids: list[int]) -> None:
        """A tokenizer may know tokens, written out in the text, that its model has no embedding for."""
        if max(token_ids, default=0) >= self._vocab_size:
            raise InvalidRequest(name, text, f"text without token {max(token_ids)}, which the model does not have")

    def _prompt_of(self, params: PoolingParams) -> str:
        """What the model's own files want before a text."""
        name, prompts = params.prompt_name, self._texts.prompts
        if name is None:
            return self._texts.default_prompt
        if name not in prompts:
            known = f"one of {', '.join(prompts)}" if prompts else "null: the model has no prompts of its own"
            raise InvalidRequest("prompt_name", name, known)
        return prompts[name]

    def _render(self, prompt: ChatPrompt) -> str:
        if prompt.continue_final_message:
            return render_unfinished_chat(
                self._tokenizer.chat_template,
                prompt.messages,
                self._tokenizer.special_tokens,
                tools=prompt.tools,
                template_kwargs=prompt.template_kwargs,
            )
        return render_chat(
            self._tokenizer.chat_template,
            prompt.messages,
            self._tokenizer.special_tokens,
            tools=prompt.tools,
            add_generation_prompt=prompt.add_generation_prompt,
            template_kwargs=prompt.template_kwargs,
        )

    def _check_length(self, text: str, may_be_cut: bool) -> None:
        """Refuses a text that is far too long by its beginning: tokenising megabytes would make everybody wait."""
        num_characters = _MANY_CHARACTERS * self.max_model_len
        while len(text) > num_characters and not may_be_cut:
            num_tokens = len(self._tokenizer.encode(text[:num_characters], add_special_tokens=False))
            # Twice as many, since where the text is cut its tokens are others than in the whole.
            if num_tokens > 2 * self.max_model_len:
                raise PromptTooLong(
                    f"prompt: its first {num_characters} of {len(text)} characters are {num_tokens} tokens, over the "
                    f"context of {self.max_model_len} tokens (max_model_len)"
                )
            num_characters *= 4

    def _check_token_ids(self, token_ids: list[Any]) -> list[int]:
        if not token_ids:
            raise InvalidRequest("prompt", token_ids, "at least one token id")
        # The usual case goes through C loops: prompts have thousands of tokens.
        if set(map(type, token_ids)) == {int} and min(token_ids) >= 0 and max(token_ids) < self._vocab_size:
            return token_ids
        return [parse_int(f"prompt[{i}]", token, 0, self._vocab_size - 1) for i, token in enumerate(token_ids)]

    def _truncate(self, token_ids: list[int], params: SamplingParams) -> list[int]:
        limit = params.truncate_prompt_tokens
        if limit is None:
            return token_ids
        if limit == 0:
            raise InvalidRequest("truncate_prompt_tokens", limit, "at least 1, or -1 for as many as the model can take")
        if limit < 0:
            limit = max(self.max_model_len - (params.max_tokens or 1), 1)
        return token_ids[-limit:]

    def _other_task(self, refused: str) -> InvalidRequest:
        """The error of a request for what the model is not served for."""
        does = "makes embeddings (runner 'pooling')"
        if self._pooling is None:
            does = "generates text (runner 'generate')"
        elif self._checkpoint.is_cross_encoder:
            does = "scores pairs of texts (a cross-encoder)"
        return InvalidRequest.worded("model", f"model {self._model_name!r} {does}: {refused}")

    def _pooling_of(self, params: PoolingParams, is_pair: bool) -> Pooling:
        """What the request asks for, and the model's own for the rest."""
        if self._pooling is None:
            raise self._other_task("it makes no embeddings; serve it with runner 'pooling' for that")
        if is_pair != self.scores_pairs:
            raise self._other_task("it reads no pairs of texts" if is_pair else "it makes no embeddings")
        if is_pair:
            for name in ("dimensions", "normalize"):
                if getattr(params, name) is not None:
                    raise InvalidRequest(name, getattr(params, name), "null: a score is no vector")
        normalize = self._pooling.normalize if params.normalize is None else params.normalize
        if params.dimensions is not None:
            check_dimensions(self._checkpoint, params.dimensions)
        return replace(self._pooling, normalize=normalize, dimensions=params.dimensions)

    def _limit(self, token_ids: list[int], params: SamplingParams) -> SamplingParams:
        """The parameters with a number of output tokens that the rest of the context can hold."""
        rest = self.max_model_len - len(token_ids)
        if rest < 1:
            raise PromptTooLong(
                f"prompt: {len(token_ids)} tokens and at least one of output are over the context of "
                f"{self.max_model_len} tokens (max_model_len)"
            )
        if params.max_tokens is None or params.max_tokens > rest:
            return params.with_max_tokens(rest)
        return params

    def _check_num_candidates(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        """Refuses what would bring more logprobs than the engine and its readers can hold."""
        assert params.max_tokens is not None
        positions = {"prompt_logprobs": num_prompt_tokens, "logprobs": params.n * params.max_tokens}
        for name, num_positions in positions.items():
            asked = getattr(params, name)
            num_best = 0 if asked is None else self._vocab_size if asked < 0 else asked
            if num_positions * num_best > _MAX_CANDIDATES:
                most = _MAX_CANDIDATES // num_positions
                raise InvalidRequest(
                    name, asked, f"at most {most} for {num_positions} tokens (prompt, or n * max_tokens)"
                )

    def _check_vocabulary(self, params: SamplingParams) -> None:
        lists = {
            "stop_token_ids": params.stop_token_ids,
            "logit_bias": params.logit_bias,
            "allowed_token_ids": params.allowed_token_ids or (),
        }
        for name, token_ids in lists.items():
            if token_ids and max(token_ids) >= self._vocab_size:
                raise InvalidRequest(name, max(token_ids), f"token ids below {self._vocab_size} (the vocabulary)")
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(params, name)
            if asked is not None and asked > self._vocab_size:
                raise InvalidRequest(name, asked, f"at most {self._vocab_size} (the vocabulary), or -1 for all of it")


def _behind(before: str, prompt: Prompt) -> Prompt:
    """A text with the model's own prompt before it; whatever else, and what is to be refused, as it is."""
    return before + prompt if isinstance(prompt, str) and prompt else prompt
