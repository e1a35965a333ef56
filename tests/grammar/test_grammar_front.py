"""Grammars behind the front: hostile ones are refused while streams go on, and a stream survives its engine's death."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.async_engine import AsyncEngine
from octavo.config import EngineConfig
from octavo.errors import InvalidRequest, RequestCancelled
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams
from octavo.testing import make_fake_model

START_TIMEOUT_S = 60
LONGEST_REFUSAL_S = 2.0
# Where others than these streams want the processors: what comes before and after a trial takes longer, too.
LONGEST_REFUSAL_BESIDE_OTHERS_S = 5.0
LONGEST_GAP_S = 0.5


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    model = make_fake_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=200_000)
    executor = "octavo.testing:create_paced_executor"
    made = AsyncEngine(EngineConfig(model=str(model), executor=executor, num_gpu_blocks_override=20_000))
    made.wait_ready(START_TIMEOUT_S)
    yield made
    made.shutdown(drain_s=0)


def params(**settings: Any) -> SamplingParams:
    return SamplingParams.from_mapping({"max_tokens": 300, "seed": 5} | settings)


def text_of(stream: RequestStream) -> str:
    return "".join(output.outputs[0].text for output in stream if output.outputs)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "nested objects": {"guided_json": nested(200)},
    "deeper objects": {"guided_json": nested(300)},
    "thousands of properties": {"guided_json": {"properties": {f"k{i}": {"type": "string"} for i in range(5000)}}},
    "exponential allOf": {
        "guided_json": {
            "allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(3)]} for i in range(20)]
        }
    },
    "a schema that is itself": {"guided_json": {"$ref": "#"}},
    "nested groups": {"guided_regex": "(" * 50_000 + ")" * 50_000},
    "intersections": {
        "guided_grammar": "start: A\nA: " + " & ".join(f"/.*{chr(97 + i)}.*{i}{{300}}/" for i in range(26))
    },
    "substrings": {"guided_grammar": 'start: %regex {"substring_chars": "' + "ab" * 100_000 + '"}'},
    "10 MB": {"guided_regex": "a" * 10_000_000},
}


@pytest.mark.slow
def test_hostile_grammars_are_refused_in_time_and_streams_do_not_wait_for_them(engine: AsyncEngine) -> None:
    is_quiet = os.getloadavg()[0] < (os.cpu_count() or 1)
    longest_s = LONGEST_REFUSAL_S if is_quiet else LONGEST_REFUSAL_BESIDE_OTHERS_S
    text_of(engine.submit("warm up", params(guided_regex="a")))
    structured = engine.submit("a", params(max_tokens=10**5, guided_regex="[a-z]{100000}"))
    plain = engine.submit("b", params(max_tokens=10**5, ignore_eos=True))
    arrivals: dict[str, list[float]] = {"structured": [], "plain": []}

    def watch(name: str, stream: RequestStream) -> None:
        arrivals[name] += [time.monotonic() for _ in stream_until_cancelled(stream)]

    watchers = [threading.Thread(target=watch, args=pair) for pair in (("structured", structured), ("plain", plain))]
    for watcher in watchers:
        watcher.start()
    try:
        for name, asked in HOSTILE.items():
            began_at = time.monotonic()
            with pytest.raises(InvalidRequest) as caught:
                text_of(engine.submit("x", params(**asked)))
            assert time.monotonic() - began_at < longest_s, name
            assert caught.value.parameter == next(iter(asked)) and str(caught.value).startswith(caught.value.parameter)
            assert len(str(caught.value)) < 600
    finally:
        structured.cancel()
        plain.cancel()
        for watcher in watchers:
            watcher.join()
    for name, times in arrivals.items():
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < LONGEST_GAP_S, name


def stream_until_cancelled(stream: RequestStream) -> Iterator[None]:
    with contextlib.suppress(RequestCancelled):
        for _ in stream:
            yield


@pytest.mark.slow
def test_a_text_goes_on_when_the_engine_has_died(engine: AsyncEngine) -> None:
    asked = params(
        guided_json={
            "type": "array",
            "items": {"type": "integer"},
            "minItems": 9,
            "x-guidance": {"whitespace_flexible": False},
        }
    )
    whole = text_of(engine.submit("numbers", asked))
    stream = engine.submit("numbers", asked)
    begun = next(iter(stream)).outputs[0].text
    pid = engine.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert begun + text_of(stream) == whole
    assert len(json.loads(whole)) >= 9 and engine.engine_pid != pid


def test_stop_strings_logprobs_and_several_completions_work_with_a_grammar(engine: AsyncEngine) -> None:
    stopped = engine.submit("a", params(guided_regex="[a-m]{5}STOP[a-z]{99}", stop="STOP"))
    assert len(text_of(stopped)) == 5
    several = engine.submit("b", params(guided_choice=["yes", "no"], n=4, logprobs=1))
    outputs = list(several)
    first, *rest = outputs
    for output in rest:
        first.extend(output)
    for completion in first.outputs:
        assert completion.text in ("yes", "no") and str(completion.finish_reason) == "stop"
        decoded = "".join(next(iter(position.values())).decoded_token for position in completion.logprobs or [])
        assert decoded == completion.text
