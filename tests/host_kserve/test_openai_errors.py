"""The error table: every error has a row, every client is told what it can act on, and none our internals."""

from __future__ import annotations

import inspect

import pytest

import octavo
from octavo_kserve import errors
from octavo_kserve.errors import (
    ERROR_TABLE,
    BodyTooLarge,
    ClientGone,
    ModelLoading,
    Unauthorized,
    UnknownModel,
    Unprocessable,
    error_reply,
)


def test_every_error_has_a_row() -> None:
    ours = {value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, octavo.OctavoError)}
    public = {value for _, value in inspect.getmembers(octavo, inspect.isclass) if issubclass(value, Exception)}
    assert ours | public == set(ERROR_TABLE)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (octavo.InvalidRequest("top_k", -2, "-1 or more"), 400),
        (octavo.PromptTooLong("too long"), 400),
        (Unauthorized(), 401),
        (UnknownModel("llama"), 404),
        (octavo.DeadlineExceeded(), 408),
        (BodyTooLarge("over 1 MiB"), 413),
        (Unprocessable("seed", 2**64, "a whole number of 64 bits"), 422),
        (octavo.Overloaded(3, 3, 1.0), 429),
        (ClientGone(), 499),
        (octavo.RequestFailed("not finite"), 500),
        (octavo.RequestCancelled("Request was cancelled: the engine is shutting down"), 503),
        (octavo.EngineDead("gone"), 503),
        (octavo.ModelLoadError("no weights"), 503),
        (KeyError("a bug"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_status_says_whose_turn_it_is(error: Exception, status: int) -> None:
    assert error_reply(error).status == status


def test_a_refused_value_is_told_in_both_shapes() -> None:
    reply = error_reply(octavo.InvalidRequest("messages[2].role", None, "a string"))
    text = "messages[2].role: None is not allowed; expected a string"
    assert reply.body == {
        "error": {
            "message": text,
            "type": "invalid_request_error",
            "param": "messages[2].role",
            "code": "invalid_value",
        },
        "detail": [{"loc": ["body", "messages", 2, "role"], "msg": text, "type": "value_error"}],
    }


def test_what_is_wrong_with_the_whole_body_is_nowhere_inside_it() -> None:
    assert error_reply(octavo.InvalidRequest("body", "{", "JSON")).body["detail"][0]["loc"] == ["body"]


def test_only_refused_values_have_a_detail() -> None:
    assert "detail" not in error_reply(octavo.Overloaded(1, 1, 1.0)).body
    assert "detail" not in error_reply(UnknownModel("x")).body


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.2, "2"), (30.0, "30")])
def test_an_overloaded_server_says_when_to_come_back(seconds: float, header: str) -> None:
    assert error_reply(octavo.Overloaded(9, 9, seconds)).headers == {"Retry-After": header}


def test_who_comes_before_the_model_is_loaded_is_told_when_to_come_back() -> None:
    reply = error_reply(ModelLoading("llama", 12.3))
    assert (reply.status, reply.headers) == (503, {"Retry-After": "5"})
    assert "'llama' is loading, for 12 s" in reply.text


def test_who_has_no_key_is_told_how_to_send_one() -> None:
    assert error_reply(Unauthorized()).headers == {"WWW-Authenticate": "Bearer"}


def test_a_subclass_is_told_like_its_parent() -> None:
    class Special(octavo.PromptTooLong):
        pass

    assert error_reply(Special("x")).body["error"]["code"] == "context_length_exceeded"


def test_a_text_is_one_line_that_can_be_sent() -> None:
    assert error_reply(octavo.RequestFailed("one\ntwo\r\nhalf \ud800")).text == "one two half \\ud800"


def test_of_a_bug_nothing_is_shown() -> None:
    assert "secret" not in str(error_reply(KeyError("/secret/path")).body)
