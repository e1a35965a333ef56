"""Errors in the words of the client: a parameter is named as the protocol at hand spells it. Knows no protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import octavo


@contextmanager
def spelled(names: Mapping[str, str]) -> Iterator[None]:
    """Raises an InvalidRequest anew whose parameter, or the beginning of whose path, is among `names`.

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
        rest = parameter.removeprefix(name)
        if parameter.startswith(name) and rest[:1] in ("", ".", "["):
            return names[name] + rest
    return parameter
