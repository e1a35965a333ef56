"""Errors in the words of the client: a parameter is named as the protocol at hand spells it. Knows no protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import octavo


@contextmanager
def spelled(names: Mapping[str, str]) -> Iterator[None]:
    """Raises an InvalidRequest anew whose parameter, or the beginning of whose path, is among `names`."""
    try:
        yield
    except octavo.InvalidRequest as error:
        name = _spelled(error.parameter, names)
        if name == error.parameter:
            raise
        raise type(error).worded(name, name + str(error).removeprefix(error.parameter)) from None


def _spelled(parameter: str, names: Mapping[str, str]) -> str:
    """The longest beginning that is known counts: "a.b[0].c" may begin with "a.b"."""
    for name in sorted(names, key=len, reverse=True):
        rest = parameter.removeprefix(name)
        if parameter.startswith(name) and rest[:1] in ("", ".", "["):
            return names[name] + rest
    return parameter
