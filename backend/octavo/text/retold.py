"""A history in other words, for chat templates that refuse it as it came: each way says the same as nearly as it can.

Messages and tools are as `render_chat` has checked them. Knows no template.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, compress, count, groupby, product, starmap
from typing import Any

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None

# The member that holds arguments which are not JSON, where an object must stand for them: Anthropic's name for it.
_NO_JSON = "INVALID_JSON"


def retold(messages: list[Message], tools: Tools) -> Iterator[tuple[list[Message], Tools]]:
    """Other ways to tell the messages and the tools, the nearest to what they were first."""
    told = [(messages, tools)]
    completed, described = _completed(messages), _described(tools)
    for chosen in product((False, True), repeat=len(_CHANGES)):
        new = completed
        for change in compress(_CHANGES, chosen):
            new = change(new)
        way = (new, described)
        if way not in told:
            told.append(way)
            yield way


def _completed(messages: list[Message]) -> list[Message]:
    """With what some templates ask for beyond the API: turns that alternate, ids of nine characters, and the name of
    the tool with each result."""
    told: list[Message] = []
    known: dict[str, Message] = {}
    unanswered: deque[Message] = deque()
    numbers = count()
    for message in chain.from_iterable(starmap(_one_turn, groupby(messages, _speaker))):
        if _calls(message):
            calls = [{**call, "id": f"call{next(numbers):05d}"} for call in _calls(message)]
            known |= {str(old.get("id")): new for old, new in zip(_calls(message), calls, strict=True)}
            unanswered = deque(calls)
            told.append(_with_calls(message, calls))
        elif message["role"] == "tool":
            told.append(_named(message, known, unanswered))
        else:
            told.append(message)
    return told


def _named(result: Message, known: dict[str, Message], unanswered: deque[Message]) -> Message:
    """Of the call whose id it has; without any, of the next one that has no result yet."""
    call_id = result.get("tool_call_id")
    first = unanswered.popleft() if unanswered else None
    call = first if call_id is None else known.get(str(call_id))
    return result if call is None else {"name": call["function"]["name"], **result, "tool_call_id": call["id"]}


def _speaker(message: Message) -> str | None:
    """Whose messages say the same in one, None for all others."""
    role: str = message["role"]
    return role if role in ("user", "system") and isinstance(message["content"], str) else None


def _one_turn(speaker: str | None, messages: Iterator[Message]) -> Iterable[Message]:
    """What one of them said in several messages, one behind the other, in one."""
    if speaker is None:
        return messages
    first, *more = messages
    return [{**first, "content": "\n\n".join([first["content"], *(message["content"] for message in more)])}]


def _described(tools: Tools) -> Tools:
    """With a description and parameters each, be they empty."""
    nothing = {"description": "", "parameters": {"type": "object", "properties": {}}}
    return tools and [{**tool, "function": nothing | _without_null(tool["function"])} for tool in tools]


def _without_null(function: Mapping[str, Any]) -> dict[str, Any]:
    return {member: value for member, value in function.items() if value is not None}


def _with_objects(messages: list[Message]) -> list[Message]:
    """For templates that go through the members of arguments: what is no object is the only member of one."""
    return [_with_calls(message, [_with_object(call) for call in _calls(message)]) for message in messages]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    given = function["arguments"]
    return {**call, "function": {**function, "arguments": {_NO_JSON: given} if isinstance(given, str) else given}}


def _one_by_one(messages: list[Message]) -> list[Message]:
    """For templates of models that make one call at once: each in a message of its own, its result behind it."""
    steps: list[list[Message]] = []
    by_id: dict[str, list[Message]] = {}
    for message in messages:
        calls = _calls(message)
        if message["role"] == "tool" and steps:
            by_id.get(str(message.get("tool_call_id")), steps[-1]).append(message)
            continue
        begun = [[{"role": message["role"], "content": "", "tool_calls": [call]}] for call in calls] or [[message]]
        begun[0] = [_with_calls(message, calls[:1])]
        by_id = {str(call.get("id")): step for call, step in zip(calls, begun, strict=False)}
        steps += begun
    return list(chain.from_iterable(steps))


def _within_results(messages: list[Message]) -> list[Message]:
    """For templates that take no user behind a result before the model has answered: what they say is part of it."""
    told: list[Message] = []
    for message in messages:
        last = told[-1] if told else message
        if last["role"] == "tool" and isinstance(last["content"], str) and _speaker(message) == "user":
            told[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            told.append(message)
    return told


def _with_calls(message: Message, calls: list[dict[str, Any]]) -> Message:
    return {**message, "tool_calls": calls} if calls else message


def _calls(message: Message) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    return calls


_CHANGES = (_one_by_one, _within_results, _with_objects)
