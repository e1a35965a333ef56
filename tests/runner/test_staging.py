"""A step's numbers on their way, on a device that reads them as late as it may."""

import numpy as np
import torch
from runner.fake_device import FakeDevice

from octavo.runner.staging import Staging


def test_arrays_lie_one_behind_the_other_where_a_graph_finds_them():
    device = FakeDevice()
    staging = Staging(device, num_words=16, num_slots=2)
    staged = staging.begin()
    first, second = staged.put(np.array([1, 2, 3])), staged.put(np.array([4]))
    device.launch(staged.send)
    device.synchronize()
    assert (first.tolist(), second.tolist()) == ([1, 2, 3], [4])
    assert first.data_ptr() == staging.place.data_ptr()
    assert second.data_ptr() == staging.place[3:].data_ptr()


def test_a_buffer_is_filled_again_only_when_its_step_has_arrived():
    device = FakeDevice()
    staging = Staging(device, num_words=4, num_slots=2)
    results = []
    for number in range(5):
        staged = staging.begin()
        read = staged.put(np.array([number]))
        result = torch.zeros(1, dtype=torch.int64)
        device.launch(staged.send)
        device.launch(lambda read=read, result=result: result.copy_(read))
        staging.used_until(device.fetch(result, device.pinned(1)))
        results.append(result)
    device.synchronize()
    assert [result.item() for result in results] == [0, 1, 2, 3, 4]
