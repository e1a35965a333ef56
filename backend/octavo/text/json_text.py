"""JsonText: the text that a JSON string stands for, while it is being written. Knows nothing of what is around it."""

from __future__ import annotations

import json
import re

_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[^u])")
_UNFINISHED = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonText:
    """One string. Owns the beginning of an escape, or of a pair of them, that is not whole yet.

    Lenient, for what a model wrote: an escape that JSON does not know stays as it is, half a pair becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._escape = ""
        self._high = ""

    @property
    def is_escaping(self) -> bool:
        """Whether a backslash waits for the character behind it."""
        return self._escape == "\\"

    def push(self, written: str) -> str:
        """What the next piece of the string says, as far as it is whole. No quotation mark in it ends the string."""
        written, self._escape = self._escape + written, ""
        end = max((match.end() for match in _ESCAPE.finditer(written)), default=0)
        unfinished = _UNFINISHED.search(written, end)
        if unfinished is not None:
            self._escape, written = unfinished[0], written[: unfinished.start()]
        text, self._high = self._high + _ESCAPE.sub(_meant, written), ""
        if _SURROGATE.search(text) is None:
            return text
        if text[-1] <= "\udbff" and _SURROGATE.match(text[-1]):
            text, self._high = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _meant(escape: re.Match[str]) -> str:
    try:
        return str(json.loads(f'"{escape[0]}"'))
    except ValueError:
        return escape[0]
