"""Whether the server lives and is ready, and the watch over its engines.

Knows no protocol: probes of every kind ask here, so that all of them are told the same.
"""

from __future__ import annotations

import asyncio
import enum
import logging

import octavo
from octavo_kserve.served_model import Models, ServedModel

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.1


class Condition(enum.Enum):
    """Of one engine. HUNG is silent for longer than its step may take; DEAD is for ever."""

    LOADING = enum.auto()
    READY = enum.auto()
    HUNG = enum.auto()
    DEAD = enum.auto()


def condition_of(engine: octavo.AsyncEngine) -> Condition:
    """A slow load is LOADING for as long as the engine's start may take, also when a crash made it load again."""
    try:
        engine.wait_ready(timeout_s=0)
    except TimeoutError:
        return Condition.LOADING
    except octavo.EngineError:
        return Condition.DEAD
    return Condition.READY if engine.is_ready() else Condition.HUNG


class Lifecycle:
    """What probes are told. `draining` is set once, when the server is on its way out."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.draining = False

    def is_live(self) -> bool:
        """Whether a restart would be of no use: engines load or work, or the end has been asked for anyway."""
        return self.draining or all(
            condition_of(model.engine) in (Condition.LOADING, Condition.READY) for model in self._expected()
        )

    def is_ready(self) -> bool:
        """Whether requests should be sent here: every model that is expected is warm, and the server stays."""
        return not self.draining and all(self.is_model_ready(model) for model in self._expected())

    def is_model_ready(self, model: ServedModel) -> bool:
        """Whether requests for this model should be sent here."""
        return not self.draining and condition_of(model.engine) is Condition.READY

    async def watch(self) -> None:
        """Logs what becomes of each engine. Raises why one is dead for good; returns when the server drains."""
        before: dict[ServedModel, Condition] = {}
        while not self.draining:
            now = {model: condition_of(model.engine) for model in self._expected()}
            for model, condition in now.items():
                if condition is not before.get(model):
                    logger.info("model %s is %s", model.name, condition.name.lower())
                if condition is Condition.DEAD:
                    # Raises why.
                    model.engine.wait_ready(timeout_s=0)
            before = now
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _expected(self) -> list[ServedModel]:
        """All models but those whose loading concerns only whoever asked for it."""
        return [model for model in self.models if not model.on_request or model.was_warm]
