"""The models that a server answers for, by name: a live table that every route reads at every request.

Knows an engine only as something to hand out; not how it is started, and no protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import octavo


@dataclass(slots=True)
class ServedModel:
    """One engine under the names that clients know it by."""

    name: str
    engine: octavo.AsyncEngine
    created: int
    """When it was made, in whole seconds since 1970."""
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)


class Models:
    """Which model answers to which name. Used from the server's event loop only."""

    def __init__(self) -> None:
        self._by_name: dict[str, ServedModel] = {}

    def get(self, name: str) -> ServedModel | None:
        """The model of this name or alias."""
        return self._by_name.get(name)

    def all(self) -> list[ServedModel]:
        """Every model once, in the order in which they were added."""
        return [model for name, model in self._by_name.items() if name == model.name]

    def add(self, model: ServedModel) -> None:
        """Answers to the model's names from now on; a name that is taken is refused."""
        for name in model.names:
            if name in self._by_name:
                raise octavo.InvalidRequest("served_model_name", name, "a name that no other model has")
        self._by_name.update(dict.fromkeys(model.names, model))

    def remove(self, name: str) -> None:
        """No longer answers to any name of this model; unknown names are ignored."""
        model = self._by_name.get(name)
        for each in model.names if model else ():
            self._by_name.pop(each, None)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.all())
