"""What probes are told, for an engine in every condition, and how an engine is watched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

import octavo
from octavo_kserve.errors import ModelLoading, UnknownModel
from octavo_kserve.lifecycle import Condition, Lifecycle, condition_of
from octavo_kserve.served_model import Models, ServedModel


@dataclass
class Engine:
    """Stands for an AsyncEngine: `failure` is what `wait_ready` raises."""

    failure: Exception | None = None
    ready: bool = True
    num_restarts: int = 0

    def wait_ready(self, timeout_s: float | None = None) -> None:
        assert timeout_s == 0, "nothing may block the probes"
        if self.failure is not None:
            raise self.failure

    def is_ready(self) -> bool:
        return self.failure is None and self.ready

    def stats(self) -> octavo.EngineStats:
        return octavo.EngineStats(engine_restarts_total=self.num_restarts)


READY, LOADING = Engine(), Engine(TimeoutError())
HUNG, DEAD = Engine(ready=False), Engine(octavo.EngineDead("it died"))
RESTARTING, BROKEN = Engine(TimeoutError(), num_restarts=1), Engine(octavo.ModelLoadError("no weights"))


def served(engine: Engine, name: str = "m", on_request: bool = False) -> ServedModel:
    return ServedModel(name, engine, 0, on_request=on_request)  # type: ignore[arg-type]


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


def test_a_server_without_models_is_ready_until_it_drains() -> None:
    state = lifecycle()
    assert state.is_ready() and state.is_live()
    state.draining = True
    assert not state.is_ready()


@pytest.mark.parametrize("engine", [LOADING, BROKEN])
def test_the_server_is_whole_without_a_model_that_loads_by_request(engine: Engine) -> None:
    state = lifecycle(READY)
    state.models.add(served(engine, "wanted", on_request=True))
    assert state.is_live() and state.is_ready()


@pytest.mark.parametrize(("engine", "live"), [(RESTARTING, True), (HUNG, False), (DEAD, False)])
def test_once_warm_a_model_loaded_by_request_counts_like_any_other(engine: Engine, live: bool) -> None:
    state = lifecycle(READY)
    state.models.add(served(engine, "wanted", on_request=True))
    assert (state.is_live(), state.is_ready()) == (live, False)


@pytest.mark.parametrize(("engine", "reason"), [(DEAD, "it died"), (BROKEN, "no weights")])
def test_the_watch_raises_why_an_engine_is_dead(engine: Engine, reason: str) -> None:
    with pytest.raises(octavo.EngineError, match=reason):
        asyncio.run(lifecycle(LOADING, engine).watch())


def test_the_watch_lets_a_load_by_request_fail_and_ends_with_the_drain() -> None:
    state = lifecycle(READY)
    state.models.add(served(BROKEN, "wanted", on_request=True))

    async def watch() -> None:
        watching = asyncio.create_task(state.watch())
        await asyncio.sleep(0)
        state.draining = True
        await watching

    asyncio.run(watch())


def test_a_model_takes_requests_from_the_first_time_that_it_is_warm() -> None:
    models = lifecycle(READY, LOADING, RESTARTING, DEAD).models
    with pytest.raises(UnknownModel):
        models.find("m")
    with pytest.raises(ModelLoading, match="'m1' is loading"):
        models.find("m1")
    for name in ("m0", "m2", "m3"):
        assert models.find(name) is models.get(name)


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
