"""The fault switch: makes any executor hang or exit at a chosen step, to try supervision and replay on it.

OCTAVO_FAULT="hang_at_step=20" (or exit_at_step), steps counted from 1 in each process, and only beside
OCTAVO_ALLOW_FAULTS=1. With ",once=FILE" only until FILE exists (the fault makes it), with ",while=FILE" only while it
does. Knows nothing of what a step computes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.core.step import Executor, ModelRunnerOutput, SchedulerOutput
from octavo.errors import InvalidRequest, ModelLoadError
from octavo.parsing import parse_int

FAULT_VARIABLE = "OCTAVO_FAULT"
ALLOW_VARIABLE = "OCTAVO_ALLOW_FAULTS"
EXIT_STATUS = 23
_STEPS = ("hang_at_step", "exit_at_step")
_FILES = ("once", "while")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong: the steps at which to hang and to exit (0 is never), and the files that limit it."""

    hang_at_step: int = 0
    exit_at_step: int = 0
    once: Path | None = None
    only_while: Path | None = None

    @property
    def is_due(self) -> bool:
        """Whether the files allow it now; takes the one chance that `once` gives."""
        if self.only_while is not None and not self.only_while.exists():
            return False
        if self.once is None:
            return True
        try:
            self.once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def read_fault(environment: Mapping[str, str]) -> Fault | None:
    """The fault that the environment asks for, if any. Raises ModelLoadError when it is not allowed or malformed."""
    text = environment.get(FAULT_VARIABLE)
    if not text:
        return None
    if environment.get(ALLOW_VARIABLE) != "1":
        raise ModelLoadError(
            f"the environment has {FAULT_VARIABLE}={text!r}, which breaks the engine on purpose: unset it, or set "
            f"{ALLOW_VARIABLE}=1 beside it on a machine that serves nobody"
        )
    names, _, values = zip(*(part.partition("=") for part in text.split(",")), strict=True)
    settings = dict(zip(names, values, strict=True))
    if not all(values) or len(settings) != len(names) or not settings.keys() <= {*_STEPS, *_FILES}:
        raise _malformed(text)
    try:
        steps = {name: parse_int(name, settings[name], 1) for name in _STEPS if name in settings}
    except InvalidRequest as error:
        raise ModelLoadError(f"{FAULT_VARIABLE}: {error}") from None
    if not steps:
        raise _malformed(text)
    files = {name: Path(settings[name]) for name in _FILES if name in settings}
    return Fault(**steps, once=files.get("once"), only_while=files.get("while"))


def _malformed(text: str) -> ModelLoadError:
    allowed = "hang_at_step=N or exit_at_step=N, then ,once=FILE or ,while=FILE"
    return ModelLoadError(f"{FAULT_VARIABLE}: {text!r} is not allowed; expected {allowed}")


class FaultyExecutor:
    """An Executor that passes everything on to another one, until the fault strikes. Owns the count of steps."""

    def __init__(self, executor: Executor, fault: Fault) -> None:
        self._executor = executor
        self._fault = fault
        self._num_steps = 0

    @property
    def num_blocks(self) -> int:
        """The other one's."""
        return self._executor.num_blocks

    @property
    def num_fallbacks(self) -> int:
        """The other one's."""
        return self._executor.num_fallbacks

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes the step and, at the one that the fault names, never returns."""
        output = self._executor.execute(step)
        self._num_steps += 1
        fault = self._fault
        if self._num_steps in (fault.hang_at_step, fault.exit_at_step) and fault.is_due:
            if self._num_steps == fault.exit_at_step:
                os._exit(EXIT_STATUS)
            threading.Event().wait()
        return output

    def shutdown(self) -> None:
        """Passed on."""
        self._executor.shutdown()
