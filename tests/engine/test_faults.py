"""The fault switch: what it takes, what it refuses, and that it works for any executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.errors import ModelLoadError
from octavo.faults import Fault, read_fault

ALLOWED = {"OCTAVO_ALLOW_FAULTS": "1"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hang_at_step=20", Fault(hang_at_step=20)),
        ("exit_at_step=1,once=/tmp/a b", Fault(exit_at_step=1, once=Path("/tmp/a b"))),
        ("exit_at_step=1,while=/x=y", Fault(exit_at_step=1, only_while=Path("/x=y"))),
        ("hang_at_step=2,exit_at_step=3", Fault(hang_at_step=2, exit_at_step=3)),
    ],
)
def test_a_fault_is_read(text: str, fault: Fault) -> None:
    assert read_fault(ALLOWED | {"OCTAVO_FAULT": text}) == fault


@pytest.mark.parametrize("environment", [{}, {"OCTAVO_FAULT": ""}, ALLOWED])
def test_without_the_switch_there_is_no_fault(environment: dict[str, str]) -> None:
    assert read_fault(environment) is None


@pytest.mark.parametrize(
    "text",
    ["hang", "hang_at_step", "hang_at_step=", "hang_at_step=0", "hang_at_step=x", "once=/a", "exit_at_step=1,,",
     "exit_at_step=1,sometimes=1", "exit_at_step=1,once=", "exit_at_step=1,exit_at_step=2"],
)  # fmt: skip
def test_a_malformed_fault_is_refused(text: str) -> None:
    with pytest.raises(ModelLoadError, match=r"OCTAVO_FAULT: .*; expected "):
        read_fault(ALLOWED | {"OCTAVO_FAULT": text})


def test_files_limit_a_fault(tmp_path: Path) -> None:
    once = Fault(exit_at_step=1, once=tmp_path / "fired")
    assert [once.is_due, once.is_due] == [True, False]
    some_time = Fault(exit_at_step=1, only_while=tmp_path / "deadly")
    assert not some_time.is_due
    (tmp_path / "deadly").touch()
    assert some_time.is_due


@pytest.mark.parametrize("permission", [None, "0", "true"])
def test_an_engine_with_a_fault_that_nobody_allowed_does_not_load(
    fake_model: Path, monkeypatch: pytest.MonkeyPatch, permission: str | None
) -> None:
    monkeypatch.setenv("OCTAVO_FAULT", "exit_at_step=20")
    if permission is not None:
        monkeypatch.setenv("OCTAVO_ALLOW_FAULTS", permission)
    with pytest.raises(ModelLoadError, match=r"OCTAVO_FAULT='exit_at_step=20', which breaks .* OCTAVO_ALLOW_FAULTS=1"):
        # Refused before the executor is looked for.
        Engine.from_config(EngineConfig(model=str(fake_model), executor="no.such:executor"))
