"""What probes are told, for an engine in every condition, and how an engine is watched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

import octavo
from octavo_kserve.lifecycle import Condition, Lifecycle, condition_of
from octavo_kserve.served_model import Models, ServedModel


@dataclass
class Engine:
    """Stands for an AsyncEngine: `failure` is what `wait_ready` raises."""

    failure: Exception | None = None
    ready: bool = True

    def wait_ready(self, timeout_s: float | None = None) -> None:
        assert timeout_s == 0, "nothing may block the probes"
        if self.failure is not None:
            raise self.failure

    def is_ready(self) -> bool:
        return self.failure is None and self.ready


READY, LOADING = Engine(), Engine(TimeoutError())
HUNG, DEAD = Engine(ready=False), Engine(octavo.EngineDead("it died"))


def served(engine: Engine, name: str = "m") -> ServedModel:
    return ServedModel(name, engine, 0)  # type: ignore[arg-type]


def lifecycle(*engines: Engine) -> Lifecycle:
    models = Models()
    for i, engine in enumerate(engines):
        models.add(served(engine, f"m{i}"))
    return Lifecycle(models)


@pytest.mark.parametrize(
    ("engine", "condition", "live", "ready"),
    [
        (READY, Condition.READY, True, True),
        (LOADING, Condition.LOADING, True, False),
        (HUNG, Condition.HUNG, False, False),
        (DEAD, Condition.DEAD, False, False),
    ],
)
def test_a_slow_load_is_alive_and_a_hang_is_not(engine: Engine, condition: Condition, live: bool, ready: bool) -> None:
    state = lifecycle(READY, engine)
    assert condition_of(engine) is condition  # type: ignore[arg-type]
    assert (state.is_live(), state.is_ready()) == (live, ready)


@pytest.mark.parametrize("engine", [READY, HUNG, DEAD])
def test_a_server_that_drains_is_alive_and_not_ready(engine: Engine) -> None:
    state = lifecycle(engine)
    state.draining = True
    assert state.is_live()
    assert not state.is_ready()
    assert not state.is_model_ready(served(engine))


def test_one_model_can_be_ready_while_another_loads() -> None:
    state = lifecycle(READY, LOADING)
    assert [state.is_model_ready(model) for model in state.models] == [True, False]


def test_waiting_ends_when_the_model_is_warm_or_failed_or_nobody_needs_it() -> None:
    state = lifecycle()
    asyncio.run(state.wait_warm(served(READY)))
    with pytest.raises(octavo.EngineDead, match="it died"):
        asyncio.run(state.wait_warm(served(DEAD)))
    state.draining = True
    asyncio.run(state.wait_warm(served(LOADING)))


def test_the_watch_raises_why_an_engine_is_dead() -> None:
    with pytest.raises(octavo.EngineDead, match="it died"):
        asyncio.run(lifecycle().watch(served(DEAD)))


def test_names_are_unique_and_aliases_are_names() -> None:
    models = Models()
    model = ServedModel("a", READY, 0, ("b", "c"))  # type: ignore[arg-type]
    models.add(model)
    assert models.get("a") is models.get("c") is model
    assert models.all() == [model]
    with pytest.raises(octavo.InvalidRequest, match="served_model_name"):
        models.add(served(READY, "b"))
    models.remove("b")
    assert models.all() == []
    assert models.get("a") is None
