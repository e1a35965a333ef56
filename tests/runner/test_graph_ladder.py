import itertools

import pytest
import torch

pytest.importorskip("triton")

from runner.fake_device import FakeDevice

from octavo.runner.graph_ladder import GraphLadder, ladder_sizes


class Doubling:
    """Work of a size: the first `size` inputs, doubled into the outputs."""

    def __init__(self, device):
        self.device = device
        self.inputs = torch.zeros(64, dtype=torch.int64)
        self.outputs = torch.zeros(64, dtype=torch.int64)
        self.prepared = []

    def work_of(self, size):
        return lambda: self.outputs[:size].copy_(self.inputs[:size] * 2)

    def prepare(self, size):
        self.prepared.append(size)
        self.device.launch(lambda: self.inputs[:size].zero_())


def make_ladder(sizes, max_graphs=None):
    device = FakeDevice(max_graphs)
    doubling = Doubling(device)
    return device, doubling, GraphLadder(device, sizes, doubling.work_of, doubling.prepare)


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 4, 17, 23, 24, 63, 64, 65, 79, 80, 100, 256, 1000])
def test_every_batch_up_to_the_largest_has_a_size_that_wastes_little(max_num_seqs):
    sizes = ladder_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == max_num_seqs
    for below, above in itertools.pairwise(sizes):
        assert above - below <= max(1, below if below < 16 else 8 if below < 64 else 16)


def test_the_sizes_of_a_ladder_go_up_in_steps_of_eight_and_then_sixteen():
    assert ladder_sizes(112) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112]


def test_graphs_are_captured_one_at_a_time_and_small_first():
    _, doubling, ladder = make_ladder([1, 2, 4])
    assert ladder.largest == 0 and ladder.find(1) is None
    found = []
    while ladder.capture_next():
        found.append(ladder.largest)
    assert found == [1, 2, 4] == doubling.prepared
    assert not ladder.capture_next() and ladder.num_fallbacks == 0


def test_a_batch_finds_the_smallest_graph_that_holds_it():
    _, _, ladder = make_ladder([1, 2, 4, 8])
    for _ in range(3):
        assert ladder.capture_next()
    found = [ladder.find(num_rows) for num_rows in range(1, 9)]
    assert [item and item[0] for item in found] == [1, 2, 4, 4, None, None, None, None]
    assert ladder.num_fallbacks == 0


def test_a_found_graph_computes_the_work_of_its_size():
    device, doubling, ladder = make_ladder([1, 2, 4])
    while ladder.capture_next():
        pass
    doubling.inputs.copy_(torch.arange(64))
    doubling.outputs.zero_()
    size, replay = ladder.find(3)
    device.launch(replay)
    device.synchronize()
    assert size == 4 and doubling.outputs[:6].tolist() == [0, 2, 4, 6, 0, 0]


def test_where_memory_ends_the_small_graphs_remain():
    device, _, ladder = make_ladder([1, 2, 4, 8], max_graphs=2)
    assert [ladder.capture_next() for _ in range(4)] == [True, True, False, False]
    assert ladder.num_fallbacks == 1 and device.num_graphs == 2
    assert ladder.find(2) is not None and ladder.find(3) is None


def test_a_capture_that_fails_for_any_reason_leaves_what_there_is(monkeypatch):
    device, _, ladder = make_ladder([1, 2, 4])
    assert ladder.capture_next()

    def forbidden(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(device, "capture", forbidden)
    assert not ladder.capture_next() and not ladder.capture_next()
    assert ladder.num_fallbacks == 1
    assert ladder.find(1) is not None and ladder.find(2) is None


def test_the_size_that_is_missing_now_can_be_captured_before_smaller_ones():
    _, doubling, ladder = make_ladder([1, 2, 4, 8])
    assert ladder.capture_next(3)
    assert doubling.prepared == [4] and ladder.find(1)[0] == 4
    assert ladder.capture_next() and ladder.capture_next(9) is False
    assert doubling.prepared == [4, 1] and ladder.find(1)[0] == 1 and ladder.find(2)[0] == 4


def test_work_is_launched_once_on_prepared_inputs_before_it_is_captured():
    seen = []
    ladder = GraphLadder(FakeDevice(), [1], lambda size: lambda: seen.append("work"), lambda size: seen.append(size))
    ladder.capture_next()
    # The fake device runs what it captures.
    assert seen == [1, "work", "work"]
