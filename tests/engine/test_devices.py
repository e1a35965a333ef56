"""Which device is chosen, from what the driver says and what torch was built for."""

from __future__ import annotations

import pytest

from octavo import devices


@pytest.mark.parametrize(
    ("num_devices", "has_cuda", "expected"), [(2, True, "cuda"), (2, False, "cpu"), (0, True, "cpu")]
)
def test_auto_takes_a_gpu_that_torch_can_use(
    monkeypatch: pytest.MonkeyPatch, num_devices: int, has_cuda: bool, expected: str
) -> None:
    monkeypatch.setattr(devices, "num_cuda_devices", lambda: num_devices)
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: has_cuda)
    assert devices.chosen_device("auto") == expected
    assert devices.chosen_device("cpu") == "cpu"
    assert devices.chosen_device("cuda:1") == "cuda:1"


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_DRIVER", "libnothing-of-this-name.so.1")
    devices.num_cuda_devices.cache_clear()
    assert devices.num_cuda_devices() == 0
    devices.num_cuda_devices.cache_clear()


def test_what_torch_was_built_for_is_what_torch_says() -> None:
    torch = pytest.importorskip("torch")
    assert devices._torch_has_cuda() == (torch.version.cuda is not None)
