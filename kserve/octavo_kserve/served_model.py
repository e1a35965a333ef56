"""The models that a server answers for, by name: a live table that every route reads at every request.

Knows of an engine whether it takes requests; not how it is started, and no protocol.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import octavo
from octavo_kserve.errors import ModelLoading, UnknownModel


@dataclass(slots=True, eq=False)
class ServedModel:
    """One engine under the names that clients know it by. Loaded anew, a model is another one."""

    name: str
    engine: octavo.AsyncEngine
    created: int
    """When it was made, in whole seconds since 1970."""
    aliases: tuple[str, ...] = ()
    on_request: bool = False
    """Somebody asked for it while the server ran: until it has been warm, the server is whole without it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)

    @property
    def was_warm(self) -> bool:
        """Whether it has been ready once; later it may restart, or be dead."""
        try:
            self.engine.wait_ready(timeout_s=0)
        except TimeoutError:
            return self.engine.stats().engine_restarts_total > 0
        except octavo.ModelLoadError:
            return False
        except octavo.EngineError:
            return True
        return True

    def check_takes_requests(self) -> None:
        """Raises ModelLoading until it has been warm. While it restarts after that, requests wait for it."""
        if not self.was_warm:
            raise ModelLoading(self.name, time.time() - self.created)


class Models:
    """Which model answers to which name. Changed by the server's event loop only, read by any thread."""

    def __init__(self) -> None:
        self._by_name: dict[str, ServedModel] = {}

    def get(self, name: str) -> ServedModel | None:
        """The model of this name or alias."""
        return self._by_name.get(name)

    def find(self, name: str) -> ServedModel:
        """The model that a request asks for. Raises UnknownModel, or ModelLoading while requests are not taken."""
        model = self.get(name)
        if model is None:
            raise UnknownModel(name)
        model.check_takes_requests()
        return model

    def all(self) -> list[ServedModel]:
        """Every model once, in the order in which they were added."""
        return [model for name, model in list(self._by_name.items()) if name == model.name]

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
