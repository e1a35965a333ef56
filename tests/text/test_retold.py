"""Histories that clients may send and a template refuses as they are: each is told in a way that it takes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from octavo.errors import InvalidRequest
from octavo.text.chat import render_chat

HI = {"role": "user", "content": "hi"}
# As families of models ask for it in templates of their own.
ONE_CALL = (
    "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}"
    "{% endif %}({{ m.content }}{{ m.tool_calls[0].function | tojson }}){% else %}[{{ m.content }}]{% endif %}"
    "{% endfor %}"
)
NINE = (
    "{% for m in messages %}{% for id in [m.tool_call_id] if m.role == 'tool' %}{% if id | length != 9 %}"
    "{{ raise_exception('nine') }}{% endif %}{{ id }}={{ m.content }};{% endfor %}{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ c.function.name }}:{{ c.id }};{% endfor %}"
    "{% endfor %}"
)
NAMED = (
    "{% for t in tools or [] %}{{ t.function.name + ' - ' + t.function.description }}"
    "{{ t.function.parameters.properties | length }};{% endfor %}{% for m in messages if m.role == 'tool' %}"
    "{% if m.name is not defined %}{{ raise_exception('name') }}{% endif %}{{ m.name }}={{ m.content }};{% endfor %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}[{{ m.content }}]{% endfor %}"
)
# Calls and results are no turns there.
TURNS = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role != 'tool' and m.tool_calls is not defined %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}[{{ m.content }}]{% endfor %}"
)
CALLS_LOOP = (
    "{% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.name }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def call(name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def called(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("template", [ONE_CALL, CALLS_LOOP])
def test_a_message_that_says_it_has_no_calls_has_none(template: str, nothing: Any) -> None:
    said = {"role": "assistant", "content": "Yes."}
    assert render_chat(template, [HI, {**said, "tool_calls": nothing}], {}) == render_chat(template, [HI, said], {})


def test_calls_are_told_one_by_one_where_a_template_takes_one_at_once() -> None:
    calls = called(call("f", id="a"), call("g", '{"a": 1}', id="b"), call("h", id="c"), content="So:")
    results = [result("2", tool_call_id="b"), result("1", tool_call_id="a"), result("?", tool_call_id="x")]
    chat = [HI, calls, *results, {"role": "assistant", "content": "Done."}, called(call("i", id="a")), result("4")]
    assert render_chat(ONE_CALL, chat, {}) == (
        '[hi](So:{"name": "f", "arguments": {}})[1]({"name": "g", "arguments": {"a": 1}})[2]'
        '({"name": "h", "arguments": {}})[?][Done.]({"name": "i", "arguments": {}})[4]'
    )


def test_a_broken_call_among_several_is_told_as_it_was_written() -> None:
    chat = [HI, called(call("f", id="a"), call("g", '{"a', id="b"))]
    assert render_chat(ONE_CALL, chat, {}).endswith(json.dumps({"name": "g", "arguments": '{"a'}) + ")")


def test_ids_are_as_long_as_a_template_wants_them_and_those_that_are_stay() -> None:
    kept = [HI, called(call("f", id="abcdefghi")), result("1", tool_call_id="abcdefghi")]
    assert render_chat(NINE, kept, {}) == "f:abcdefghi;abcdefghi=1;"
    chat = [
        HI,
        called(call("f", id="call_1"), call("g", id="call_2")),
        result("2", tool_call_id="call_2"),
        result("1", tool_call_id="call_1"),
        called(call("h"), call("i")),
        result("3"),
        result("4", tool_call_id=None),
    ]
    assert render_chat(NINE, chat, {}) == (
        "f:call00000;g:call00001;call00001=2;call00000=1;h:call00002;i:call00003;call00002=3;call00003=4;"
    )


def test_a_result_has_the_name_of_its_tool_where_a_template_asks_for_it() -> None:
    chat = [HI, called(call("f", id="a"), call("g", id="b")), result("2", tool_call_id="b"), result("1", name="own")]
    assert render_chat(NAMED, chat, {}) == "g=2;own=1;"
    with pytest.raises(InvalidRequest, match="name"):
        render_chat(NAMED, [HI, result("1", tool_call_id=["no id"])], {})


def test_a_tool_has_a_description_and_parameters_where_a_template_asks_for_them() -> None:
    functions: list[dict[str, Any]] = [
        {"name": "f"},
        {"name": "g", "description": None, "parameters": None},
        {"name": "h", "description": "Helps.", "parameters": {"properties": {"a": {}}}},
    ]
    tools = [{"type": "function", "function": function} for function in functions]
    assert render_chat(NAMED, [HI], {}, tools=tools) == "f - 0;g - 0;h - Helps.1;"


def test_messages_side_by_side_are_one_turn_where_a_template_wants_them_to_alternate() -> None:
    chat = [HI, {"role": "user", "content": "there"}, {"role": "assistant", "content": "Yes?"}, HI]
    assert render_chat(ALTERNATING, chat, {}) == "[hi\n\nthere][Yes?][hi]"
    with pytest.raises(InvalidRequest, match="alternate"):
        render_chat(ALTERNATING, chat[2:], {})
    first = "{% for m in messages[1:] if m.role == 'system' %}{{ raise_exception('first') }}{% endfor %}"
    told = first + "{{ messages[0].content }}"
    assert render_chat(told, [*({"role": role, "content": role} for role in ("system", "developer")), HI], {}) == (
        "system\n\ndeveloper"
    )


def test_what_the_user_says_behind_a_result_is_part_of_it_where_a_template_takes_no_turn_there() -> None:
    chat = [HI, called(call("f", id="a")), result("1", tool_call_id="a"), HI, HI, {"role": "assistant", "content": "."}]
    assert render_chat(TURNS, [*chat, HI], {}) == "[hi][][1\n\nhi\n\nhi][.][hi]"


def test_a_developer_is_who_a_system_message_is_of_unless_the_template_knows_better() -> None:
    roles = "{% for m in messages %}{{ m.role }}{% endfor %}"
    chat = [{"role": "developer", "content": "Be brief."}, HI]
    assert render_chat(roles, chat, {}) == "systemuser"
    assert render_chat(roles + "{# developer #}", chat, {}) == "developeruser"


def test_what_a_template_takes_is_told_as_it_came() -> None:
    chat = [HI, HI, called(call("f", id="a"), call("g")), result("1", tool_call_id="a")]
    tools = [{"type": "function", "function": {"name": "f"}}]
    told = json.loads(render_chat("{{ [messages, tools] | tojson }}", chat, {}, tools=tools))
    assert told[1] == tools and told[0][:2] == chat[:2] and told[0][3] == chat[3]
    assert [each.get("id") for each in told[0][2]["tool_calls"]] == ["a", None]


def test_long_histories_that_are_refused_are_refused_soon() -> None:
    begun = time.process_time()
    for chat in ([HI] * 20_000, [called(*[call("f")] * 5_000), *[result("1")] * 5_000]):
        with pytest.raises(InvalidRequest, match="never"):
            render_chat("{{ raise_exception('never') }}", chat, {})
    assert time.process_time() - begun < 5
