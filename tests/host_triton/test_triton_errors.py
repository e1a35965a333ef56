"""The error table: every error has a row, and no client is shown our internals."""

from __future__ import annotations

import pytest

import octavo
from octavo_triton.errors import ERROR_TABLE, UnhealthyEngine, error_reply


def subclasses(root: type) -> set[type]:
    return {root}.union(*(subclasses(child) for child in root.__subclasses__()))


def test_every_error_of_octavo_has_a_row() -> None:
    ours = {error for error in subclasses(octavo.OctavoError) if error.__module__ == "octavo.errors"}
    assert ours | {UnhealthyEngine} == set(ERROR_TABLE)


@pytest.mark.parametrize("error", sorted(ERROR_TABLE, key=lambda error: error.__name__))
def test_every_code_is_one_of_the_servers(error: type[octavo.OctavoError]) -> None:
    codes = {"INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"}
    assert ERROR_TABLE[error].code in codes


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (octavo.InvalidRequest("top_k", -2, "-1 or more"), "INVALID_ARG", "Error generating stream: top_k: -2 is not"),
        (octavo.PromptTooLong("too long"), "INVALID_ARG", "Error generating stream: too long"),
        (octavo.Overloaded(3, 3, 1.0), "UNAVAILABLE", "Exceeds maximum queue size"),
        (octavo.DeadlineExceeded(), "UNAVAILABLE", "Request timeout expired"),
        (octavo.RequestCancelled(), "CANCELLED", "Request was cancelled"),
        (octavo.RequestFailed("not finite"), "INTERNAL", "Error generating stream: not finite"),
        (octavo.EngineDead("gone"), "UNAVAILABLE", "Error generating stream: gone"),
        (UnhealthyEngine(), "UNAVAILABLE", "Model is unavailable due to unhealthy vLLM engine"),
    ],
)
def test_clients_are_told_in_the_servers_words(error: octavo.OctavoError, code: str, text: str) -> None:
    reply = error_reply(error)
    assert (reply.code, reply.text[: len(text)]) == (code, text)


def test_a_subclass_is_told_like_its_parent() -> None:
    class Special(octavo.PromptTooLong):
        pass

    assert error_reply(Special("x")).code == "INVALID_ARG"


def test_a_text_is_always_one_line() -> None:
    assert error_reply(octavo.RequestFailed("one\ntwo\r\nthree")).text.endswith(": one two three")


def test_a_text_can_always_be_sent() -> None:
    assert error_reply(octavo.RequestFailed("half \ud800 a character")).text.endswith("half \\ud800 a character")


def test_of_a_bug_nothing_is_shown() -> None:
    reply = error_reply(KeyError("/secret/path"))
    assert reply.code == "INTERNAL"
    assert "secret" not in reply.text
