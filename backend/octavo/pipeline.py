"""Pipeline: steps on their way through an executor, so that the next one is scheduled while the device computes.

Knows nothing of what is in a step, nor of what becomes of its output.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from octavo.core.step import Executor, LateExecutor, ModelRunnerOutput, SchedulerOutput, StepResult


@dataclass(frozen=True, slots=True)
class CollectedStep:
    """A step that has been computed, and for how long it had the device, in seconds."""

    step: SchedulerOutput
    output: ModelRunnerOutput
    duration_s: float


class Pipeline:
    """Owns the steps that were submitted and not collected, oldest first.

    A LateExecutor begins each where it is submitted. For any other there is a thread that computes them, or with
    `num_ahead` 0 none: a step is computed where it is submitted.
    """

    def __init__(self, executor: Executor, num_ahead: int) -> None:
        """`num_ahead` is how many steps may be submitted before the oldest must be collected."""
        self.num_ahead = num_ahead
        self._executor = executor
        self._steps: deque[tuple[SchedulerOutput, StepResult, float]] = deque()
        self._collected_at = 0.0
        needs_thread = num_ahead > 0 and not isinstance(executor, LateExecutor)
        self._thread = ThreadPoolExecutor(1, "octavo-steps") if needs_thread else None

    def __len__(self) -> int:
        """How many steps are in it."""
        return len(self._steps)

    @property
    def is_full(self) -> bool:
        """Whether the oldest step must be collected before another is submitted."""
        return len(self._steps) > self.num_ahead

    def submit(self, step: SchedulerOutput) -> None:
        """Lets a step be computed after those before it."""
        submitted_at = time.monotonic()
        self._steps.append((step, self._begin(step), submitted_at))

    def _begin(self, step: SchedulerOutput) -> StepResult:
        if self._thread is not None:
            return self._thread.submit(self._executor.execute, step)
        if isinstance(self._executor, LateExecutor):
            return self._executor.launch(step)
        done: Future[ModelRunnerOutput] = Future()
        done.set_result(self._executor.execute(step))
        return done

    def collect(self) -> CollectedStep:
        """The oldest step, when it has been computed. Raises what the executor raised; the device is lost then."""
        step, result, submitted_at = self._steps[0]
        output = result.result()
        self._steps.popleft()
        # It had to wait for the one before it.
        begun_at = max(submitted_at, self._collected_at)
        self._collected_at = time.monotonic()
        return CollectedStep(step, output, self._collected_at - begun_at)

    def close(self) -> None:
        """Waits for the step that is being computed, forgets the others and ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._steps.clear()
