"""How the conformance suite asks: many requests at once, their answers, and what they should have been.

Knows no check.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from octavo.errors import RequestError
from octavo.sampling_params import SamplingParams
from octavo.testing.host import Answer, Ask, Host, HostError, Offline, Piece

POLL_S = 0.01
# Ends at the end of the context only, long after every patience.
ENDLESS = Ask("Tell me a story.", {"seed": 7, "max_tokens": 10**6, "ignore_eos": True})


def seeded(prompt: str, seed: int, num_tokens: int) -> Ask:
    """A request whose answer has so many tokens, and depends on its seed."""
    sampling = {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "seed": seed}
    return Ask(prompt, sampling | {"max_tokens": num_tokens, "ignore_eos": True})


def offline_answers(offline: Offline, asks: Iterable[Ask]) -> list[Answer]:
    """The answers, in one batch. Raises RequestError when one of them is wrong."""
    asks = list(asks)
    params = [SamplingParams.from_mapping(ask.parameters) for ask in asks]
    return [
        Answer(
            texts=tuple(completion.text for completion in output.outputs),
            finish_reasons=tuple(str(completion.finish_reason) for completion in output.outputs),
            num_prompt_tokens=output.usage.num_prompt_tokens,
            num_output_tokens=output.usage.num_output_tokens,
        )
        for output in offline.generate([ask.prompt for ask in asks], params, use_tqdm=False)
    ]


def offline_sentence(offline: Offline, ask: Ask) -> str:
    """What `octavo.LLM` says of a wrong request."""
    try:
        answers = offline_answers(offline, [ask])
    except RequestError as error:
        return str(error)
    raise AssertionError(f"{ask.parameters} is not wrong: {answers}")


def told(request: Callable[..., object], *arguments: object) -> HostError:
    """How a request failed that has to."""
    try:
        answer = request(*arguments)
    except HostError as error:
        return error
    raise AssertionError(f"no error, but {answer!r:.200}")


def gather(pieces: Iterable[Piece]) -> Answer:
    """The answer that the pieces add up to. Asserts that each completion ends once, and at its end."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    num_prompt_tokens, num_output_tokens = 0, 0
    for piece in pieces:
        for index, text in piece.texts.items():
            assert not text or index not in reasons, f"text after the finish reason: {text!r}"
            texts[index] = texts.get(index, "") + text
        for index, reason in piece.finish_reasons.items():
            assert index not in reasons, f"a second finish reason: {reason!r}"
            reasons[index] = reason
        num_prompt_tokens = piece.num_prompt_tokens or num_prompt_tokens
        num_output_tokens += piece.num_output_tokens
    assert reasons and texts.keys() <= reasons.keys(), f"a stream ended without its finish reason, after {texts}"
    return Answer(
        texts=tuple(texts.get(index, "") for index in sorted(reasons)),
        finish_reasons=tuple(reasons[index] for index in sorted(reasons)),
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
    )


def streamed(host: Host, ask: Ask, on_piece: Callable[[], object] = lambda: None) -> Answer:
    """The answer, as a stream brings it."""

    def observed(pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            on_piece()
            yield piece

    with host.stream(ask) as pieces:
        return gather(observed(pieces))


@contextmanager
def streams_in_flight(host: Host, asks: Iterable[Ask]) -> Iterator[list[Future[Answer]]]:
    """Reads all of them at once in threads of its own; leaving the block waits for their ends."""
    asks = list(asks)
    with ThreadPoolExecutor(len(asks)) as pool:
        yield [pool.submit(streamed, host, ask) for ask in asks]


@contextmanager
def streams_begun(host: Host, asks: Iterable[Ask]) -> Iterator[list[Future[Answer]]]:
    """As `streams_in_flight`, from when each has brought a piece."""
    asks = list(asks)
    begun = [threading.Event() for _ in asks]
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = [pool.submit(streamed, host, ask, each.set) for ask, each in zip(asks, begun, strict=True)]

        def all_begun() -> bool:
            # One that has failed tells why when it is asked for its answer.
            return all(each.is_set() or answer.done() for each, answer in zip(begun, answers, strict=True))

        wait_until(all_begun, host, "every stream has brought a piece")
        yield answers


def together(host: Host, asks: Iterable[Ask], first_streams: bool = True) -> list[Answer]:
    """Answers to requests that run side by side, every second one streamed."""
    asks = list(asks)
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = []
        for i, ask in enumerate(asks):
            streams = i % 2 == (0 if first_streams else 1)
            answers.append(pool.submit(streamed, host, ask) if streams else pool.submit(host.generate, ask))
        return [answer.result() for answer in answers]


def wait_until(condition: Callable[[], bool], host: Host, what: str) -> None:
    """Looks again and again; an AssertionError that says `what` when the host's patience is over."""
    never, end = threading.Event(), time.monotonic() + host.facts.patience_s
    while not condition():
        assert time.monotonic() < end, f"not within {host.facts.patience_s} s: {what}; {host.load()}"
        never.wait(POLL_S)


def wait_until_idle(host: Host) -> None:
    """Waits until nothing runs, waits, or holds a block."""
    wait_until(lambda: host.load().is_none, host, "everything is free")
