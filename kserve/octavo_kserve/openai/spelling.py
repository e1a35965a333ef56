"""Errors in the words of the client: a parameter is named as the protocol at hand spells it. Knows no protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import octavo

_INDEX = re.compile(r"\[\d+\]")
_ANY = "[]"


@contextmanager
def spelled(names: Mapping[str, str]) -> Iterator[None]:
    """Raises an InvalidRequest anew whose parameter, or the beginning of whose path, is among `names`.

    There "[]" stands for any index, which is kept: {"a[].b": "c[].d"} makes "c[2].d.x" of "a[2].b.x".
    So it does with a PromptTooLong, whose text begins with what is too long.
    """
    try:
        yield
    except (octavo.InvalidRequest, octavo.PromptTooLong) as error:
        parameter = getattr(error, "parameter", str(error).partition(":")[0])
        name = _spelled(parameter, names)
        if name == parameter:
            raise
        text = name + str(error).removeprefix(parameter)
        if isinstance(error, octavo.InvalidRequest):
            raise type(error).worded(name, text) from None
        raise type(error)(text) from None


def _spelled(parameter: str, names: Mapping[str, str]) -> str:
    """The longest beginning that is known counts: "a.b[0].c" may begin with "a.b"."""
    for name in sorted(names, key=len, reverse=True):
        path = _INDEX.sub(_ANY, parameter) if _ANY in name else parameter
        rest = path.removeprefix(name)
        if path.startswith(name) and rest[:1] in ("", ".", "["):
            begun, *parts = (names[name] + rest).split(_ANY)
            return begun + "".join(map(str.__add__, _INDEX.findall(parameter), parts))
    return parameter
