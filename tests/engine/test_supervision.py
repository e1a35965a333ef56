"""Engine processes that die, hang, never start, or lose their front: nothing is lost, nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.async_engine import AsyncEngine
from octavo.config import EngineConfig
from octavo.errors import EngineDead, ModelLoadError, RequestFailed
from octavo.request import EngineRequest
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams
from octavo.supervisor import EngineProcess
from octavo.wire import Ready, Start, Submit

Expected = Callable[..., str]
StartEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.slow

ENDLESS = SamplingParams(max_tokens=None, seed=1)
NUM_TOKENS = 1500
FRONT_SCRIPT = """
import sys
from octavo.async_engine import AsyncEngine
from octavo.config import EngineConfig
from octavo.sampling_params import SamplingParams
engine = AsyncEngine(EngineConfig(model=sys.argv[1], executor="octavo.testing:create_fake_executor"))
engine.wait_ready(60)
stream = engine.submit("x", SamplingParams(max_tokens=60_000))
stream.take(60)
print(engine.engine_pid, flush=True)
if sys.argv[2] == "read":
    for out in stream:
        pass
"""


def kill(engine: AsyncEngine) -> None:
    assert engine.engine_pid is not None
    os.kill(engine.engine_pid, signal.SIGKILL)


def read_all(streams: list[RequestStream], texts: list[str]) -> None:
    for i, stream in enumerate(streams):
        for out in stream:
            texts[i] += out.outputs[0].text


def submit_and_begin(engine: AsyncEngine, num_streams: int) -> tuple[list[RequestStream], list[str]]:
    """Seeded streams, each of which has brought something, and what it was."""
    params = [SamplingParams(max_tokens=NUM_TOKENS, seed=i) for i in range(num_streams)]
    streams = [engine.submit(f"prompt {i}", params[i]) for i in range(num_streams)]
    texts = []
    for stream in streams:
        out = stream.take(30)
        assert out is not None and not out.finished
        texts.append(out.outputs[0].text)
    return streams, texts


def test_sixteen_streams_go_on_unchanged_when_the_process_is_killed(
    start_engine: StartEngine, expected_text: Expected, async_scheduling: bool
) -> None:
    engine = start_engine(async_scheduling=async_scheduling)
    streams, texts = submit_and_begin(engine, 16)
    kill(engine)
    read_all(streams, texts)
    assert texts == [expected_text(f"prompt {i}", i, NUM_TOKENS) for i in range(16)]
    stats = engine.stats()
    assert stats.engine_restarts_total == 1
    assert stats.finished_total == {"length": 16}
    assert stats.num_requests_waiting == 0
    assert engine.is_ready()


def test_children_and_their_stop_strings_survive_a_kill(start_engine: StartEngine, expected_text: Expected) -> None:
    engine = start_engine()
    ended = expected_text("family", 1, NUM_TOKENS, 0)
    lasting = expected_text("family", 1, NUM_TOKENS, 1)
    early, late = ended[2:6], lasting[900:906]
    assert early not in lasting and late not in ended[:6]
    stream = engine.submit("family", SamplingParams(max_tokens=NUM_TOKENS, n=2, seed=1, stop=[early, late]))
    texts, reasons = ["", ""], [None, None]
    killed = False
    for out in stream:
        for completion in out.outputs:
            texts[completion.index] += completion.text
            reasons[completion.index] = completion.stop_reason
        if reasons[0] is not None and not killed:
            kill(engine)
            killed = True
    assert texts == [ended[:2], lasting[: lasting.index(late)]]
    assert reasons == [early, late]
    assert engine.stats().engine_restarts_total == 1


def test_a_second_kill_in_the_middle_of_the_replay_changes_nothing(
    start_engine: StartEngine, expected_text: Expected
) -> None:
    engine = start_engine()
    streams, texts = submit_and_begin(engine, 4)
    first_pid = engine.engine_pid
    kill(engine)
    while engine.engine_pid == first_pid:
        take_more(streams[0], texts)
    kill(engine)
    read_all(streams, texts)
    assert texts == [expected_text(f"prompt {i}", i, NUM_TOKENS) for i in range(4)]
    assert engine.stats().engine_restarts_total == 2


def take_more(stream: RequestStream, texts: list[str]) -> None:
    out = stream.take(30)
    assert out is not None and not out.finished
    texts[0] += out.outputs[0].text


def test_a_kill_beyond_the_limit_ends_every_stream(start_engine: StartEngine) -> None:
    engine = start_engine(max_restarts=1)
    streams = [engine.submit("x", ENDLESS) for _ in range(3)]
    assert streams[0].take(30) is not None
    first_pid = engine.engine_pid
    kill(engine)
    while engine.engine_pid == first_pid:
        assert streams[0].take(30) is not None
    engine.wait_ready(30)
    kill(engine)
    for stream in streams:
        with pytest.raises(EngineDead, match="SIGKILL, after 1 restarts within 300 s"):
            list(stream)
    assert not engine.is_ready()
    with pytest.raises(EngineDead, match="SIGKILL"):
        engine.submit("x", ENDLESS)
    with pytest.raises(EngineDead):
        engine.wait_ready()
    assert engine.stats().finished_total == {"error": 3}


def test_a_hung_step_is_killed_and_its_streams_go_on(
    start_engine: StartEngine, expected_text: Expected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OCTAVO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("OCTAVO_FAULT", f"hang_at_step=20,once={tmp_path / 'fired'}")
    engine = start_engine(step_timeout_s=0.5)
    streams = [engine.submit(f"hung {i}", SamplingParams(max_tokens=50, seed=i)) for i in range(4)]
    texts = [""] * 4
    read_all(streams, texts)
    assert texts == [expected_text(f"hung {i}", i, 50) for i in range(4)]
    assert engine.stats().engine_restarts_total == 1


def test_an_idle_process_is_not_taken_for_hung(start_engine: StartEngine) -> None:
    engine = start_engine(step_timeout_s=0.2)
    pid = engine.engine_pid
    with pytest.raises(TimeoutError):  # three times the limit, in silence
        RequestStream("idle", lambda: None).take(0.6)
    assert engine.engine_pid == pid
    assert engine.is_ready()


def test_a_step_that_exits_is_replayed(
    start_engine: StartEngine, expected_text: Expected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OCTAVO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("OCTAVO_FAULT", f"exit_at_step=20,once={tmp_path / 'fired'}")
    engine = start_engine()
    texts = [""]
    read_all([engine.submit("exit", SamplingParams(max_tokens=50, seed=1))], texts)
    assert texts == [expected_text("exit", 1, 50)]


def test_a_request_that_kills_every_process_fails_alone(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("OCTAVO_FAULT", "exit_at_step=1")
    engine = start_engine(max_restarts=3)
    for num_deaths in (3, 6):  # the deaths that are blamed on it do not use up the restarts
        with pytest.raises(RequestFailed, match="died 3 times"):
            list(engine.submit("poison", ENDLESS))
        # Whoever sees it fail sees the restart, too: what is submitted now waits for the new process.
        assert engine.stats().engine_restarts_total == num_deaths


def test_what_only_waited_behind_a_request_that_kills_is_not_blamed(
    start_engine: StartEngine, expected_text: Expected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OCTAVO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("OCTAVO_FAULT", "exit_at_step=1,while=%s" % (tmp_path / "deadly"))
    (tmp_path / "deadly").touch()
    engine = start_engine(max_num_seqs=1)
    poison = engine.submit("poison", ENDLESS)
    waiting = engine.submit("waiting", SamplingParams(max_tokens=20, seed=1))
    with pytest.raises(RequestFailed, match="died 3 times"):
        list(poison)
    (tmp_path / "deadly").unlink()
    texts = [""]
    read_all([waiting], texts)
    assert texts == [expected_text("waiting", 1, 20)]


def test_cancelling_works_while_the_process_is_being_restarted(start_engine: StartEngine) -> None:
    engine = start_engine()
    stream = engine.submit("x", ENDLESS)
    assert stream.take(30) is not None
    kill(engine)
    stream.cancel()
    with pytest.raises(Exception, match="cancelled"):
        list(stream)
    assert engine.submit("y", SamplingParams(max_tokens=3)).take(30) is not None


@pytest.fixture
def start_front(long_model: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts FRONT_SCRIPT in a process of its own, which first prints the engine's pid."""
    fronts: list[subprocess.Popen[str]] = []

    def start(then: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FRONT_SCRIPT, str(long_model), then]
        fronts.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return fronts[-1]

    yield start
    for front in fronts:
        front.kill()
        front.communicate()


def engine_of(front: subprocess.Popen[str]) -> int:
    assert front.stdout is not None
    return int(front.stdout.readline())


def test_a_front_that_is_killed_takes_its_process_along(start_front: Any, watch: Callable[[int], Any]) -> None:
    front = start_front("read")
    child = watch(engine_of(front))
    front.kill()
    assert child.ended(1)


def test_even_a_process_that_cannot_run_any_code_ends_with_its_front(
    start_front: Any, watch: Callable[[int], Any]
) -> None:
    """Stopped, as good as in native code that never gives the interpreter lock back."""
    front = start_front("read")
    child = watch(engine_of(front))
    os.kill(child.pid, signal.SIGSTOP)
    front.kill()
    assert child.ended(1)


def test_a_front_that_exits_without_a_shutdown_leaves_no_process(start_front: Any, watch: Callable[[int], Any]) -> None:
    front = start_front("leave")
    child = watch(engine_of(front))
    assert front.wait(15) == 0
    assert child.ended(1)


def test_a_closed_socket_alone_ends_a_process_in_the_middle_of_a_step(
    long_model: Path, watch: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when a fork of the front is gone, too: its parent lives on, so the kernel sends no signal."""
    marker = tmp_path / "hangs"
    monkeypatch.setenv("OCTAVO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("OCTAVO_FAULT", f"hang_at_step=1,once={marker}")
    process = EngineProcess(sys.executable)
    child = watch(process.pid)
    connection = process.connection
    connection.send(Start(EngineConfig(model=str(long_model), executor="octavo.testing:create_fake_executor")))
    while not any(isinstance(message, Ready) for message in connection.read()):
        assert connection.wait(30)
    params = SamplingParams(max_tokens=5)
    connection.send(Submit(EngineRequest(request_id="r", prompt_token_ids=[1], params=params, seed=1)))
    deadline = time.monotonic() + 30
    while not marker.exists():
        assert time.monotonic() < deadline and not child.ended(0.01)
    connection.close()
    assert child.ended(5)
    process.kill()


def test_an_interpreter_without_octavo_is_named(start_engine: StartEngine, tmp_path: Path) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.base_prefix}/bin/python3 -I -S "$@"\n')
    bare.chmod(0o755)
    engine = start_engine(wait=False, engine_python=str(bare))
    with pytest.raises(ModelLoadError, match=r"bare-python .*No module named 'octavo'.*engine_python"):
        engine.wait_ready(60)
    with pytest.raises(EngineDead, match="No module named 'octavo'"):
        engine.submit("x", ENDLESS)


def test_an_interpreter_that_is_none_is_named(start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="engine_python: '/no/such' cannot be started"):
        start_engine(engine_python="/no/such")
    monkeypatch.setattr(sys, "executable", "/opt/host/embedding-stub")
    with pytest.raises(ModelLoadError, match=r"embedding-stub.*OCTAVO_ENGINE_PYTHON"):
        start_engine()
    monkeypatch.setenv("OCTAVO_ENGINE_PYTHON", "/no/other")
    with pytest.raises(ModelLoadError, match="/no/other"):
        start_engine()


def test_what_loading_said_arrives_and_is_not_tried_again(start_engine: StartEngine) -> None:
    engine = start_engine(wait=False, executor="no.such.module:create")
    stream = engine.submit("early", ENDLESS)
    with pytest.raises(ModelLoadError, match=r"executor: cannot load 'no\.such\.module:create'"):
        engine.wait_ready(60)
    with pytest.raises(EngineDead, match="cannot load"):
        list(stream)
    assert engine.stats().engine_restarts_total == 0
    assert not engine.is_ready()


def test_a_load_without_progress_is_given_up(
    start_engine: StartEngine, tmp_path: Path, watch: Callable[[int], Any]
) -> None:
    silent = tmp_path / "silent-python"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    began = time.monotonic()
    engine = start_engine(wait=False, engine_python=str(silent), start_timeout_s=0.3)
    with pytest.raises(ModelLoadError, match=r"no sign of life for 0\.3 s"):
        engine.wait_ready(30)
    assert time.monotonic() - began < 15
    engine.shutdown()
    assert engine.engine_pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(engine.engine_pid, 0)


def test_another_version_of_octavo_is_refused(start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.front_loop.wire_version", lambda: "of another time")
    with pytest.raises(ModelLoadError, match=r"another version of octavo .*of another time"):
        start_engine()


def test_the_hosts_python_settings_are_not_passed_on(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    assert start_engine().is_ready()


def test_waiting_for_an_engine_that_is_loading_times_out(start_engine: StartEngine) -> None:
    engine = start_engine(wait=False)
    with pytest.raises(TimeoutError):
        engine.wait_ready(0)
    engine.shutdown()


def test_a_signal_to_the_whole_group_does_not_end_the_process(
    start_engine: StartEngine, expected_text: Expected
) -> None:
    engine = start_engine()
    assert engine.engine_pid is not None
    pid = engine.engine_pid
    assert os.getsid(pid) == pid != os.getsid(0)
    stream = engine.submit("signal", SamplingParams(max_tokens=100, seed=1))
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    texts = [""]
    read_all([stream], texts)
    assert texts == [expected_text("signal", 1, 100)]
    assert engine.stats().engine_restarts_total == 0


def test_engines_live_side_by_side(start_engine: StartEngine, expected_text: Expected) -> None:
    engines = [start_engine(), start_engine()]
    texts = [""] * 2
    streams = [engine.submit("both", SamplingParams(max_tokens=300, seed=i)) for i, engine in enumerate(engines)]
    kill(engines[0])
    reader = threading.Thread(target=read_all, args=(streams, texts))
    reader.start()
    reader.join(30)
    assert texts == [expected_text("both", i, 300) for i in range(2)]
    assert [engine.stats().engine_restarts_total for engine in engines] == [1, 0]
