"""Messages arrive as they were sent, however the bytes are cut."""

from __future__ import annotations

import socket
import string
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.outputs import EngineOutput, FinishReason, TokenLogprob
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.stats import EngineStats
from octavo.wire import (
    Abort,
    Beat,
    Connection,
    FromEngine,
    Hello,
    LoadFailed,
    Progress,
    Ready,
    Shutdown,
    Start,
    Step,
    Submit,
    ToEngine,
    wire_version,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(max_size=8)
LOGPROBS = st.none() | st.lists(st.lists(st.builds(TokenLogprob, INT64, FLOATS, INT64), max_size=3), max_size=3)


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


PARAMS = st.builds(
    SamplingParams,
    n=st.integers(1, 128),
    temperature=between(0.1, 2),
    top_p=between(0.1, 1),
    top_k=st.integers(-1, 1000),
    min_p=between(0, 1),
    repetition_penalty=between(0.1, 5),
    frequency_penalty=between(-2, 2),
    presence_penalty=between(-2, 2),
    seed=st.none() | INT64,
    max_tokens=st.none() | st.integers(5, 1000),
    min_tokens=st.integers(0, 5),
    stop=st.lists(st.text(string.ascii_letters, min_size=1), max_size=3),
    stop_token_ids=TOKENS,
    include_stop_str_in_output=st.booleans(),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(-1, 20),
    prompt_logprobs=st.none() | st.integers(-1, 20),
    logit_bias=st.dictionaries(st.integers(0, 1000), between(-100, 100), max_size=3),
    allowed_token_ids=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=3),
    bad_words=st.lists(st.text(string.ascii_letters, min_size=1), max_size=3),
    skip_special_tokens=st.booleans(),
    truncate_prompt_tokens=st.none() | st.integers(-1, 100),
)
REQUESTS = st.builds(
    EngineRequest,
    request_id=TEXTS,
    prompt_token_ids=TOKENS,
    params=PARAMS,
    seed=INT64,
    stop_token_ids=TOKENS.map(tuple),
    bad_words_token_ids=st.lists(TOKENS, max_size=2),
    priority=INT64,
    cache_salt=TEXTS,
    emitted_token_ids=st.lists(TOKENS, max_size=2),
    finished=st.lists(st.booleans(), max_size=2),
)
REASONS = st.none() | st.sampled_from(FinishReason)
OUTPUTS = st.builds(
    EngineOutput,
    request_id=TEXTS,
    index=st.integers(0, 127),
    token_ids=TOKENS,
    finish_reason=REASONS,
    stop_token_id=st.none() | INT64,
    logprobs=LOGPROBS,
    prompt_logprobs=LOGPROBS,
    num_cached_tokens=INT64,
    error=TEXTS,
)
STATS = st.builds(
    EngineStats,
    num_requests_running=INT64,
    kv_cache_waste=FLOATS,
    finished_total=st.dictionaries(st.sampled_from([str(r) for r in FinishReason]), INT64),
    startup_s=st.dictionaries(TEXTS, FLOATS),
)
CONFIGS = st.builds(EngineConfig, model=st.none() | st.just("m"), seed=INT64, max_waiting=st.integers(0, 9))
TO_ENGINE = st.one_of(
    st.builds(Start, CONFIGS),
    st.builds(Submit, REQUESTS),
    st.builds(Abort, TEXTS, st.none() | st.integers(0, 127), st.sampled_from(FinishReason)),
    st.just(Shutdown()),
)
FROM_ENGINE = st.one_of(
    st.builds(Hello, TEXTS),
    st.builds(Progress, TEXTS, FLOATS),
    st.builds(Ready, STATS, CONFIGS),
    st.builds(LoadFailed, TEXTS),
    st.builds(Step, st.lists(OUTPUTS, max_size=3), st.none() | STATS),
    st.just(Beat()),
)


def receive_all(connection: Connection[object]) -> list[object]:
    messages: list[object] = []
    while True:
        assert connection.wait(10)
        try:
            messages += connection.read()
        except EOFError:
            return messages


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    yield first, second
    first.close()
    second.close()


@pytest.mark.slow
@given(sent=st.lists(TO_ENGINE, max_size=4))
def test_what_the_front_sends_arrives_unchanged(sent: list[ToEngine]) -> None:
    first, second = socket.socketpair()
    front: Connection[object] = Connection(first, FromEngine)
    engine: Connection[object] = Connection(second, ToEngine)
    for message in sent:
        front.queue(message)
    assert front.flush()
    front.close()
    assert receive_all(engine) == sent
    engine.close()


@pytest.mark.slow
@given(sent=st.lists(FROM_ENGINE, max_size=4))
def test_what_the_engine_sends_arrives_unchanged(sent: list[FromEngine]) -> None:
    first, second = socket.socketpair()
    front: Connection[object] = Connection(first, FromEngine)
    engine: Connection[object] = Connection(second, ToEngine)
    for message in sent:
        engine.send(message)
    engine.close()
    received = receive_all(front)
    front.close()
    assert received == sent
    for message in received:
        for output in message.outputs if isinstance(message, Step) else []:
            assert all(type(c) is TokenLogprob for position in output.logprobs or [] for c in position)


def test_a_message_that_comes_byte_by_byte_is_read_once_it_is_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    first, second = ends
    sender: Connection[object] = Connection(first, FromEngine)
    sender.queue(Hello("a"))
    sender.queue(Hello("b"))
    receiver: Connection[object] = Connection(second, FromEngine)
    read: list[object] = []
    frames = bytes(sender._outbox)
    for i in range(len(frames)):
        assert not receiver.read() if i == 0 else True
        first.sendall(frames[i : i + 1])
        read += receiver.read()
        assert len(read) == (2 * (i + 1)) // len(frames)
    assert read == [Hello("a"), Hello("b")]


def test_a_queue_larger_than_the_socket_is_sent_piece_by_piece(ends: tuple[socket.socket, socket.socket]) -> None:
    sender: Connection[object] = Connection(ends[0], FromEngine)
    receiver: Connection[object] = Connection(ends[1], FromEngine)
    message = LoadFailed("x" * 3_000_000)
    sender.queue(message)
    assert not sender.flush()
    read: list[object] = []
    while not read:
        sender.flush()
        read += receiver.read()
    assert read == [message]


def test_sending_to_a_dead_peer_is_no_error_and_reading_tells(ends: tuple[socket.socket, socket.socket]) -> None:
    sender: Connection[object] = Connection(ends[0], FromEngine)
    ends[1].close()
    sender.queue(Beat())
    assert sender.flush()
    with pytest.raises(EOFError):
        sender.read()


def test_the_version_is_stable_within_one_installation() -> None:
    assert wire_version() == wire_version()
    assert len(wire_version()) == 12
