"""Writer: what one protocol's answers to one request look like, whole and as a stream's events.

Knows no JSON text, no stream and no connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import octavo


class Writer(ABC):
    """Writes the answer to one request. Owns what later events depend on.

    Where it `names_events`, each is named by its member `type`, and the last one says that it is; else "[DONE]" does.
    `names` are parameters that this protocol spells in another way than the engine does, see `spelled`.
    """

    names_events: ClassVar[bool] = False
    names: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def whole(self, outputs: list[octavo.RequestOutput]) -> dict[str, Any]:
        """The answer in one piece, of the whole output for each prompt."""

    @abstractmethod
    def chunks(self, i: int, output: octavo.RequestOutput) -> list[dict[str, Any]]:
        """The events of what is new about prompt `i`."""

    @abstractmethod
    def last_chunks(self) -> list[dict[str, Any]]:
        """The events behind those of the last output."""

    @abstractmethod
    def failure(self, error: BaseException) -> list[dict[str, Any]]:
        """The events that end a stream which has begun, where the request fails."""
