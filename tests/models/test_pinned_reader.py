import json
import os
import threading

import pytest
import torch
from models.driver import Driver, random_tokens
from safetensors.torch import load_file, save_file

from octavo.checkpoint import open_checkpoint
from octavo.errors import ModelLoadError
from octavo.models import load_model
from octavo.models.pinned_reader import PinnedReader, _Buffer
from octavo.models.safetensors_file import SafetensorsFile
from octavo.models.weight_queue import Arriving, Chunk
from octavo.models.weights import SafetensorsReader

CPU = torch.device("cpu")
# 40 bytes: no tensor here is a whole number of them.
CHUNK_BYTES = 40
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("octavo-weights")]


@pytest.fixture
def shards(tmp_path):
    """Two files with twelve tensors of four types; the shapes are of all kinds."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (1,), (7, 13), (0, 4), (3, 5, 2), (1000,)]
    tensors = {
        f"{i}.{dtype}": torch.randn(shape, generator=generator).to(dtype)
        for i, shape in enumerate(shapes)
        for dtype in (DTYPES[i % 4], DTYPES[(i + 1) % 4])
    }
    names = list(tensors)
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for path, part in zip(paths, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, path)
    return paths


def open_reader(*paths, ahead_bytes=1 << 20):
    return PinnedReader(paths, CPU, chunk_bytes=CHUNK_BYTES, ahead_bytes=ahead_bytes)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("ahead_bytes", [1, 300, 1 << 20])
def test_the_tensors_are_those_that_the_format_own_reader_gives(shards, dtype, ahead_bytes):
    wanted = SafetensorsReader(shards)
    with open_reader(*shards, ahead_bytes=ahead_bytes) as reader:
        assert reader.shapes == wanted.shapes
        for name in sorted(reader.shapes, reverse=True):
            found = reader.read(name, dtype)
            assert found.dtype == dtype
            assert torch.equal(found, wanted.read(name, dtype))


def test_a_system_that_reads_less_at_once_than_asked_is_asked_again(shards, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:7]], offset))
    wanted = SafetensorsReader(shards)
    with open_reader(*shards) as reader:
        assert all(torch.equal(reader.read(n, torch.float32), wanted.read(n, torch.float32)) for n in reader.shapes)


def test_a_tensor_can_be_read_again_and_in_another_type(shards):
    with open_reader(*shards) as reader:
        first = reader.read("5.torch.bfloat16", torch.bfloat16)
        for _ in range(2):
            assert torch.equal(reader.read("5.torch.bfloat16", torch.float32), first.float())


def test_what_nobody_takes_does_not_keep_others_from_coming(shards):
    # The limit is used up by the first tensors of the file.
    with open_reader(*shards, ahead_bytes=1) as reader:
        assert reader.read(next(reversed(reader.shapes)), torch.float32) is not None


def test_reading_goes_no_further_ahead_than_allowed(shards):
    with open_reader(*shards, ahead_bytes=1) as reader:
        for name in reader.shapes:
            reader.read(name, torch.float32)
            arriving = reader._queue._arriving.values()
            assert sum(each.stored.size_bytes > 0 for each in list(arriving)) <= 1


def test_a_reader_that_is_left_early_ends_its_threads(shards):
    with open_reader(*shards, ahead_bytes=300) as reader:
        reader.read("1.torch.bfloat16", torch.float32)
        assert any(thread.name.startswith("octavo-weights") for thread in threading.enumerate())


def test_files_that_become_shorter_name_the_tensor_and_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100), "b": torch.ones(100)}, path)
    with open_reader(path, ahead_bytes=1) as reader:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size - 200)
        assert reader.read("a", torch.float32).sum() == 100
        with pytest.raises(ModelLoadError, match=rf"tensor b cannot be read from {path}: .* ends at byte {size - 200}"):
            reader.read("b", torch.float32)


def test_a_file_that_vanishes_while_it_is_read_is_read_to_its_end(shards):
    wanted = load_file(shards[0]) | load_file(shards[1])
    with open_reader(*shards) as reader:
        for path in shards:
            path.unlink()
        assert all(torch.equal(reader.read(name, torch.float64), wanted[name].double()) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_name_and_not_read(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    save_file({"whole": torch.ones(50, dtype=dtype), "plain": torch.ones(50)}, path)
    with open_reader(path) as reader:
        assert reader.read("plain", torch.float32).sum() == 50
        with pytest.raises(ModelLoadError, match=r"tensor whole in model\.safetensors is stored as .*quantised"):
            reader.read("whole", torch.float32)


def test_no_memory_for_a_tensor_is_an_error_that_names_it(shards, monkeypatch):
    with open_reader(*shards) as reader:
        empty = torch.empty

        def full(size, **settings):
            if size == 1000 and settings["dtype"] != torch.uint8:
                raise torch.OutOfMemoryError("out of memory")
            return empty(size, **settings)

        monkeypatch.setattr(torch, "empty", full)
        assert reader.read("1.torch.bfloat16", torch.float32) is not None
        with pytest.raises(ModelLoadError, match=r"tensor 5\.torch\.bfloat16 .*out of memory"):
            reader.read("5.torch.bfloat16", torch.float32)


def test_threads_that_cannot_work_are_waited_for_by_nobody(shards, monkeypatch):
    def no_pinned_memory(*args):
        raise RuntimeError("no pinned memory")

    monkeypatch.setattr("octavo.models.pinned_reader._Buffer", no_pinned_memory)
    with (
        open_reader(*shards) as reader,
        pytest.raises(ModelLoadError, match=r"tensor 5\.torch\.bfloat16.*no pinned memory"),
    ):
        reader.read("5.torch.bfloat16", torch.float32)


def header(entry, size=16):
    text = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (3).to_bytes(8, "little") + b"{1}",
        header({}, size=15),
        header({"shape": [5]}),
        header({"shape": [-4]}),
        header({"shape": 4}),
        header({"data_offsets": [-16, 0]}),
        header({"data_offsets": [16, 0], "dtype": "I32"}),
        header({"data_offsets": [0]}),
        header({"dtype": ["F32"]}),
        header({"dtype": None, "shape": None}),
    ],
)
def test_a_broken_file_is_named_when_it_is_opened(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"{path} is not a whole safetensors file"):
        PinnedReader((path,), CPU)


def test_a_whole_file_opens_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({}))
    with PinnedReader((path,), CPU) as reader:
        assert reader.read("a", torch.float32).tolist() == [0.0] * 4
    with pytest.raises(ModelLoadError, match=r"missing\.safetensors"):
        PinnedReader((path, tmp_path / "missing.safetensors"), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_model_computes_the_same_whichever_reader_brought_its_weights(tiny, load, monkeypatch, name):
    folder = tiny(name)[0]
    tokens = random_tokens(20)
    wanted = Driver(load(folder)).run("a", tokens, 20)
    monkeypatch.setattr("octavo.models.weights.SafetensorsReader", lambda files: reader)
    seen = []
    checkpoint = open_checkpoint(folder)
    with open_reader(*checkpoint.weight_files) as reader:
        model = load_model(checkpoint, torch.float32, CPU, lambda phase, fraction: seen.append(fraction))
    assert torch.equal(Driver(model).run("a", tokens, 20), wanted)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_buffer_is_filled_again_only_when_the_copy_out_of_it_is_done(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(30.0)}, path)
    order = []

    class Event:
        def __init__(self, blocking):
            assert blocking

        def record(self, stream):
            order.append(("copied", stream))

        def synchronize(self):
            order.append("wait")

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    # There is no pinned memory without a GPU.
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **settings: empty(*size, **settings))
    file = SafetensorsFile(path)
    read = file.read_into
    monkeypatch.setattr(file, "read_into", lambda *args: (order.append("read"), read(*args)))
    arriving = Arriving(file.tensors["a"], flat=torch.zeros(30, dtype=torch.bfloat16))
    buffer = _Buffer(CHUNK_BYTES, "stream")
    for begin in (0, 10, 20):
        buffer.carry(Chunk(arriving, begin, begin + 10))
    file.close()
    assert arriving.flat.tolist() == list(range(30))
    assert order == ["wait", "read", ("copied", "stream")] * 3
