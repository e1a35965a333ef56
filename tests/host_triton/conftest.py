"""A recording stand-in for the module that only the Triton server's Python has; integration tests use the real one."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any, ClassVar

import pytest

FINAL = 1


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        """The signature of a server that knows numpy 2: (output_tensors, error, parameters)."""
        self.output_tensors, self.error = output_tensors, error


class TritonModelException(Exception):
    pass


class ServerLog:
    lines: list[str]

    def __init__(self) -> None:
        self.lines = []
        self.log_info = self.log_warn = self.log_error = self.log_verbose = self.lines.append


class Metric:
    def __init__(self, family: MetricFamily, labels: dict[str, str], buckets: list[float] | None) -> None:
        self.family, self.labels, self.threads, self.values = family, labels, {threading.get_ident()}, []
        self.buckets = buckets

    def set(self, value: float) -> None:
        self._take("gauge", value)

    def increment(self, value: float) -> None:
        self._take("counter", value)

    def observe(self, value: float) -> None:
        self._take("histogram", value)

    def _take(self, kind: str, value: float) -> None:
        assert self.family.kind == kind, "the real server hangs or raises"
        self.threads.add(threading.get_ident())
        self.values.append(value)
        self.family.reported.set()


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    created: ClassVar[list[MetricFamily]] = []

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.kind, self.metrics, self.reported = name, kind, [], threading.Event()
        MetricFamily.created.append(self)

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        assert isinstance(buckets, list) == (self.kind == "histogram"), "the real server raises"
        self.metrics.append(Metric(self, labels, buckets))
        return self.metrics[-1]


def _module() -> ModuleType:
    module = ModuleType("triton_python_backend_utils")
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    for thing in (Tensor, TritonError, InferenceResponse, TritonModelException, MetricFamily):
        setattr(module, thing.__name__, thing)
    module.Logger = ServerLog()
    return module


sys.modules.setdefault("triton_python_backend_utils", _module())


class RecordingResponseSender:
    """Breaks loudly where the real server would crash: at a poll or a send after FINAL."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.final = threading.Event()
        self.sent = threading.Condition()
        self.polled = threading.Event()
        self.cancelled = False
        self.fail_with: Exception | None = None
        self.crashes = 0

    def is_cancelled(self) -> bool:
        self._touch()
        self.polled.set()
        return self.cancelled

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self._touch()
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            raise error
        with self.sent:
            if response is not None:
                self.responses.append(response)
            self.sent.notify_all()
        if flags & FINAL:
            self.final.set()

    def _touch(self) -> None:
        if self.final.is_set():
            self.crashes += 1

    def wait_for(self, num_responses: int) -> None:
        with self.sent:
            assert self.sent.wait_for(lambda: len(self.responses) >= num_responses, 10)

    @property
    def texts(self) -> list[str]:
        """text_output's first element of every response that has one."""
        return [r.output_tensors[0].array[0].decode() for r in self.responses if r.output_tensors]

    @property
    def error(self) -> TritonError:
        """The error of the last response."""
        assert self.responses[-1].error is not None
        return self.responses[-1].error


@pytest.fixture
def response_sender() -> RecordingResponseSender:
    return RecordingResponseSender()


@pytest.fixture
def make_response_sender() -> type[RecordingResponseSender]:
    return RecordingResponseSender


@pytest.fixture
def server_log() -> list[str]:
    log = sys.modules["triton_python_backend_utils"].Logger
    log.lines.clear()
    return log.lines


@pytest.fixture
def metric_families() -> list[MetricFamily]:
    MetricFamily.created = []
    return MetricFamily.created
