"""LLM: offline batches, with the engine in this process. The interface mirrors vLLM's class of that name."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.admission import Admission, Ticket
from octavo.checkpoint import open_checkpoint
from octavo.config import NOBODY_WAITS_S, EngineConfig
from octavo.engine import Engine
from octavo.errors import InvalidRequest, RequestFailed
from octavo.live_request import LiveRequest
from octavo.outputs import EngineOutput, RequestOutput
from octavo.pooling_params import PoolingParams, cosine_similarity
from octavo.progress import count_bar, load_bar
from octavo.prompt import Prompt, TextPair
from octavo.recorder import Recorder
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams
from octavo.stats import EngineStats, Observations
from octavo.text.tokenizer import open_tokenizer

Prompts = Prompt | Sequence[Prompt]
Params = SamplingParams | Sequence[SamplingParams] | None
Vector = NDArray[np.float32]


class LLM:
    """A model, ready to complete batches of prompts. Not thread-safe.

    `model` is a folder or a GGUF file, None the embedded default; `engine_args` are the fields of EngineConfig. Raises
    ModelLoadError.
    """

    def __init__(self, model: str | None = None, **engine_args: Any) -> None:
        config = EngineConfig.from_mapping({"model": model, "itl_budget_s": NOBODY_WAITS_S, **engine_args})
        checkpoint = open_checkpoint(config.model)
        with load_bar() as on_progress:
            self.engine = Engine.from_checkpoint(config, checkpoint, on_progress)
            # A server does the rest when it is idle, which a batch never is.
            on_progress("making ready", 0.0)
            while self.engine.make_ready():
                pass
            on_progress("making ready", 1.0)
        self.tokenizer = open_tokenizer(checkpoint, config.tokenizer)
        self._admission = Admission(checkpoint, self.tokenizer, self.engine.config)
        self._recorder = Recorder(self.engine.config.max_model_len or 1)
        self._numbers = itertools.count()

    def generate(
        self, prompts: Prompts, sampling_params: Params = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Completes each prompt; the results are in the prompts' order.

        A prompt is a text or a list of token ids; `sampling_params` is one for all, or a list with one each. Shows a
        progress bar on a terminal unless `use_tqdm` is False. Raises RequestError before anything runs when one of the
        requests, or its grammar, is wrong; a request that breaks while it runs has `finish_reason` "error" and says why
        in `.error`.
        """
        lives = self._prepare(_as_list(prompts), sampling_params)
        started = time.monotonic()
        num_tokens = 0
        with count_bar("requests", len(lives), use_tqdm) as one_more:
            for live in self._run(lives):
                if live.fresh is not None and live.fresh.finished:
                    num_tokens += live.fresh.usage.num_output_tokens
                    one_more(f"{num_tokens / (time.monotonic() - started):.0f} tokens/s")
        return [output for live in lives if (output := live.take_fresh()) is not None]

    def chat(
        self, messages: Sequence[Any], sampling_params: Params = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Like `generate` for one conversation (a list of {"role", "content"}) or a list of them."""
        if not messages:
            raise InvalidRequest("messages", messages, "at least one message")
        conversations = [messages] if isinstance(messages[0], Mapping) else messages
        return self.generate(conversations, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Completes one prompt (or conversation) and gives what is new after each step.

        A reader that stops early ends the request.
        """
        with closing(self._run(self._prepare([prompt], sampling_params))) as steps:
            for live in steps:
                output = live.take_fresh()
                if output is not None:
                    yield output

    def embed(
        self, prompts: Prompts, pooling_params: PoolingParams | None = None, *, use_tqdm: bool = True
    ) -> list[Vector]:
        """One vector a prompt, fp32 [dimensions], in the prompts' order: of a model with runner "pooling".

        Shows a progress bar on a terminal unless `use_tqdm` is False. Raises RequestError before anything runs when one
        of the prompts is wrong, RequestFailed when one breaks while it runs.
        """
        lives = self._prepare(_as_list(prompts), pooling_params or PoolingParams())
        started = time.monotonic()
        num_tokens = 0
        with count_bar("requests", len(lives), use_tqdm) as one_more:
            for live in self._run(lives):
                num_tokens += len(live.request.prompt_token_ids)
                one_more(f"{num_tokens / (time.monotonic() - started):.0f} tokens/s")
        return [_vector_of(live) for live in lives]

    def score(
        self,
        queries: str | Sequence[str],
        documents: str | Sequence[str],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[float]:
        """How well each document goes with its query: a cross-encoder's score, else the cosine of their vectors.

        A score is the sigmoid of the model's number, from 0 to 1, unless its files say otherwise; a cosine lies between
        -1 and 1. One query goes with all documents; several go with as many documents, in pairs. Raises what `embed`
        raises.
        """
        left, right = _as_list(queries), _as_list(documents)
        if len(left) not in (1, len(right)):
            raise InvalidRequest("queries", f"{len(left)} of them", f"one, or one a document ({len(right)})")
        if self._admission.scores_pairs:
            of_each = left * len(right) if len(left) == 1 else left
            pairs = [TextPair(query, document) for query, document in zip(of_each, right, strict=True)]  # type: ignore[arg-type]  # checked at submit
            return [float(score[0]) for score in self.embed(pairs, pooling_params, use_tqdm=use_tqdm)]
        vectors = self.embed([*left, *right], pooling_params, use_tqdm=use_tqdm)
        of_queries, of_documents = vectors[: len(left)], vectors[len(left) :]
        if len(of_queries) == 1:
            of_queries *= len(of_documents)
        return [cosine_similarity(query, document) for query, document in zip(of_queries, of_documents, strict=True)]

    def stats(self) -> EngineStats:
        """The engine's counters and gauges, and the histograms of all requests."""
        return replace(self.engine.stats(), histograms=self._recorder.snapshot())

    def _prepare(self, prompts: Sequence[Prompt], sampling_params: Params | PoolingParams) -> list[LiveRequest]:
        if sampling_params is None or isinstance(sampling_params, SamplingParams | PoolingParams):
            params: Sequence[SamplingParams | PoolingParams] = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = sampling_params
        if len(params) != len(prompts):
            raise InvalidRequest("sampling_params", f"{len(params)} of them", f"one, or one a prompt ({len(prompts)})")
        lives = []
        arrived_at = time.monotonic()
        for prompt, each in zip(prompts, params, strict=True):
            number = next(self._numbers)
            request, text = self._admission.prepare(Ticket(str(number), number), prompt, each)
            # Nobody waits at this stream: the engine runs in the reader's own thread.
            stream = RequestStream(str(number), lambda: None)
            lives.append(LiveRequest(self._admission.tokenizer_for(prompt), request, text, stream, arrived_at))
            if request.params.structured_outputs is not None:
                self.engine.gate.use(self.tokenizer.vocabulary)
        return lives

    def _run(self, lives: list[LiveRequest]) -> Generator[LiveRequest, None, None]:
        """Steps until all have ended; gives each request, once a step, that has something new."""
        by_id = {live.wire_id: live for live in lives}
        try:
            for live in lives:
                if live.request.params.structured_outputs is not None:
                    self.engine.gate.check(live.request.params.structured_outputs)
            for live in lives:
                self.engine.add_request(live.request)
            while self.engine.has_work:
                touched = {}
                outputs, now, seen = self.engine.step(), time.monotonic(), Observations()
                for new in outputs:
                    live = by_id[new.request_id]
                    if self._push(live, new, now, seen):
                        touched[new.request_id] = live
                self._recorder.observe(seen)
                yield from touched.values()
        finally:
            self._abandon(lives)

    def _push(self, live: LiveRequest, new: EngineOutput, now: float, seen: Observations) -> bool:
        output = live.push(new, now, seen)
        if output is None:
            return False
        if output.finish_reason is not None and new.finish_reason is None:
            # A stop string: the engine cannot see it.
            self.engine.abort(live.wire_id, new.index, output.finish_reason)
        if new.error and live.fresh is not None:
            live.fresh.error = new.error
        return True

    def _abandon(self, lives: list[LiveRequest]) -> None:
        """Whatever still runs (the caller was interrupted, a later request was refused) gives back its blocks."""
        if any(list(live.unfinished) for live in lives):
            for live in lives:
                self.engine.abort(live.wire_id)
            self.engine.discard_outputs()


def _vector_of(live: LiveRequest) -> Vector:
    output = live.take_fresh()
    if output is None or output.embedding is None:
        raise RequestFailed((output and output.error) or "the request ended without a vector")
    return output.embedding


def _as_list(prompts: Prompts) -> list[Prompt]:
    """A single prompt (a text, or token ids) is a list of one."""
    if isinstance(prompts, str) or (isinstance(prompts, Sequence) and prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]  # told apart by what it holds
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise InvalidRequest("prompts", prompts, "a text, a list of token ids, or a list of those")
    return list(prompts)  # type: ignore[arg-type]
