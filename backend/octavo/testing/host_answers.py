"""Checks of what a host answers: the whole and its pieces, seeds, and the sentence for every wrong request.

Knows no protocol, and nothing of load.
"""

from __future__ import annotations

from dataclasses import replace

from octavo.testing.host import Ask, ErrorKind, Host, Offline
from octavo.testing.host_requests import (
    gather,
    offline_answers,
    offline_sentence,
    seeded,
    streamed,
    streams_begun,
    streams_in_flight,
    together,
    told,
)

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "1. Mix 🦊 and sugar.\n2.",
)

ASKS = (
    Ask(PROMPTS[0], {"temperature": 0, "seed": 0, "max_tokens": 12}),
    Ask(PROMPTS[1], {"temperature": "0.8", "seed": "3", "max_tokens": 24, "stop": ["e", " the"]}),
    Ask(PROMPTS[1], {"temperature": 0.8, "seed": 4, "max_tokens": 24, "stop": "a", "include_stop_str_in_output": True}),
    Ask(PROMPTS[2], {"temperature": 1.2, "seed": 5, "n": 3, "max_tokens": 10}),
    Ask(PROMPTS[2], {"seed": 6}),
    Ask(PROMPTS[0], {"seed": 7, "max_tokens": 40, "guided_regex": "[a-z]{3,9}( [a-z]{3,9}){2}"}),
)
SEEDS = (0, -3, 2**63 - 1)
NUM_TOKENS = 20
NUM_TOKENS_OF_A_LONG_ONE = 100

# Each is wrong in one way; what is to be said of it comes from `octavo.LLM`.
BAD_PARAMETERS: tuple[dict[str, object], ...] = (
    {"temperature": -1},
    {"temperature": 2.5},
    {"temperature": "hot"},
    {"temperature": True},
    {"top_p": 0},
    {"top_p": 1.5},
    {"top_k": -2},
    {"top_k": 1.5},
    {"min_p": -0.1},
    {"max_tokens": 0},
    {"max_tokens": 10**10},
    {"max_tokens": [1]},
    {"n": 0},
    {"n": 129},
    {"n": 2, "temperature": 0},
    {"min_tokens": -1},
    {"min_tokens": 5, "max_tokens": 4},
    {"seed": 2**63},
    {"seed": 0.5},
    {"repetition_penalty": 0},
    {"frequency_penalty": 3},
    {"presence_penalty": "-2.1"},
    {"logit_bias": {"1": 101}},
    {"logit_bias": {"-1": 1}},
    {"logit_bias": {"2000000000": 1}},
    {"logit_bias": 3},
    {"allowed_token_ids": []},
    {"allowed_token_ids": [2_000_000_000]},
    {"bad_words": [""]},
    {"stop": 5},
    {"stop": ["x"] * 17},
    {"stop_token_ids": ["x"]},
    {"ignore_eos": "maybe"},
    {"logprobs": -2},
    {"logprobs": 2_000_000_000},
    {"truncate_prompt_tokens": 0},
    {"guided_regex": "a+", "guided_choice": ["a"]},
    {"guided_regex": "("},
)


def whole_answers_are_their_pieces(host: Host, offline: Offline) -> None:
    """One answer and a stream bring the same text, finish reasons and counts: those of `octavo.LLM`."""
    for ask, wanted in zip(ASKS, offline_answers(offline, ASKS), strict=True):
        assert host.generate(ask) == wanted, f"{ask}: not the answer {wanted}"
        found = streamed(host, ask)
        assert found == wanted, f"{ask}: the stream brings {found}, not {wanted}"


def a_stream_comes_in_pieces(host: Host, offline: Offline) -> None:
    """The text is not kept until it is whole."""
    ask = seeded(PROMPTS[0], 1, NUM_TOKENS_OF_A_LONG_ONE)
    (wanted,) = offline_answers(offline, [ask])
    with host.stream(ask) as stream:
        pieces = list(stream)
    assert gather(pieces) == wanted
    num_texts = sum(bool(piece.texts.get(0)) for piece in pieces)
    assert num_texts > 1, f"{wanted.num_output_tokens} tokens in {num_texts} pieces"


def seeded_texts_are_always_the_same(host: Host, offline: Offline) -> None:
    """Of a seed depends the text, and of nothing else: asked twice, alone or among others, streamed or not."""
    asks = [seeded(prompt, seed, NUM_TOKENS) for prompt in PROMPTS[:2] for seed in SEEDS]
    wanted = offline_answers(offline, asks)
    assert len({answer.texts for answer in wanted}) == len(asks), "the seeds make no difference offline"
    assert [host.generate(ask) for ask in asks[::3]] == wanted[::3], "asked alone"
    assert together(host, asks) == wanted, "asked side by side"
    assert together(host, asks, first_streams=False) == wanted, "asked again, each in the other way"


def bad_requests_are_told_what_is_wrong(host: Host, offline: Offline) -> None:
    """Kind and sentence of every refusal, whole and streamed, and a good request right after them."""
    good = seeded(PROMPTS[0], 2, 4)
    (wanted,) = offline_answers(offline, [good])
    for ask in bad_asks(host):
        sentence = offline_sentence(offline, ask)
        error = told(host.generate, ask)
        assert error.kind is ErrorKind.INVALID and error.text == sentence, f"{error}; it should be {sentence!r}"
        error = told(streamed, host, ask)
        assert error.kind in (ErrorKind.INVALID, None) and error.text == sentence, f"on a stream: {error}"
    assert host.generate(good) == wanted, "after them, a good request fails"


def bad_asks(host: Host) -> list[Ask]:
    """Every wrong request."""
    too_long = "hello " * (host.facts.max_model_len + 1)
    return [
        *(Ask(PROMPTS[0], parameters) for parameters in BAD_PARAMETERS),
        Ask("", {"max_tokens": 1}),
        Ask(too_long, {"max_tokens": 1}),
    ]


def an_unknown_model_is_not_found(host: Host, offline: Offline) -> None:
    """The sentence is the platform's own; it names the model."""
    error = told(host.generate, Ask(PROMPTS[0], {}, model="nobody"))
    assert error.kind is ErrorKind.NOT_FOUND and "nobody" in error.text, error


def a_bad_request_harms_nobody_else(host: Host, offline: Offline) -> None:
    """Good and bad ones side by side: the good ones are answered as if alone."""
    good = [seeded(PROMPTS[1], seed, NUM_TOKENS_OF_A_LONG_ONE) for seed in range(host.facts.max_num_seqs)]
    wanted = offline_answers(offline, good)
    bad = [replace(ask, parameters={**ask.parameters, "top_p": -1}) for ask in good]
    sentence = offline_sentence(offline, bad[0])
    with streams_begun(host, good) as answers:
        with streams_in_flight(host, bad) as refused:
            assert [told(each.result).text for each in refused] == [sentence] * len(bad)
        assert [each.result() for each in answers] == wanted
