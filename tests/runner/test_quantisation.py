import dataclasses
from types import SimpleNamespace

import gguf
import pytest
import torch

from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.models.config import Quantisation
from octavo.runner.quantisation import quantisation_of

GPU = torch.device("cuda", 1)
CPU = torch.device("cpu")
SETTINGS = [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}]


@pytest.fixture
def checkpoint(tiny_llama):
    return open_checkpoint(tiny_llama[0])


@pytest.fixture
def capability(monkeypatch):
    """(major, minor) -> every GPU has it."""
    return lambda *version: monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: version)


@pytest.mark.parametrize("setting", SETTINGS)
def test_fp8_without_a_gpu_is_refused_by_name(checkpoint, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ModelLoadError, match=f"{name}: '{value}' needs a GPU; leave it out on cpu"):
        quantisation_of(EngineConfig(**setting), checkpoint, CPU)


@pytest.mark.parametrize("setting", SETTINGS)
def test_fp8_on_a_gpu_that_has_no_such_numbers_is_refused_with_both_versions(checkpoint, setting, capability):
    capability(8, 6)
    with pytest.raises(ModelLoadError, match=rf"{next(iter(setting))}: 'fp8' needs .* 8\.9 or more; this one has 8\.6"):
        quantisation_of(EngineConfig(**setting), checkpoint, GPU)


@pytest.mark.parametrize("version", [(8, 9), (9, 0), (10, 0)])
def test_fp8_is_what_was_asked_for(checkpoint, capability, version):
    capability(*version)
    config = EngineConfig(quantization="fp8", kv_cache_dtype="fp8_e4m3")
    assert quantisation_of(config, checkpoint, GPU) == Quantisation("fp8", fp8_kv_cache=True)


@pytest.mark.parametrize("device", [GPU, CPU])
@pytest.mark.parametrize("quantization", [None, "gguf"])
def test_nothing_is_quantised_that_nobody_asked_for(checkpoint, device, quantization):
    config = EngineConfig(quantization=quantization)
    assert quantisation_of(config, checkpoint, device) == Quantisation()


def gguf_with(checkpoint, *kinds):
    """The checkpoint as a GGUF file whose tensors have these types."""
    tensors = [SimpleNamespace(tensor_type=gguf.GGMLQuantizationType[kind]) for kind in kinds]
    return dataclasses.replace(checkpoint, gguf=SimpleNamespace(reader=SimpleNamespace(tensors=tensors)))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_codes_are_for_cpus(checkpoint, scheme):
    config = EngineConfig(quantization=scheme)
    # The last layer's errors are those of the logits: never 4 bits.
    assert quantisation_of(config, checkpoint, CPU) == Quantisation(scheme, head="int8")
    with pytest.raises(ModelLoadError, match=f"quantization: '{scheme}' has no kernels for GPUs yet; use 'fp8' there"):
        quantisation_of(config, checkpoint, GPU)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_codes_are_for_gguf_files_that_have_none(checkpoint, scheme):
    config = EngineConfig(quantization=scheme)
    assert quantisation_of(config, gguf_with(checkpoint, "F32", "F16", "BF16"), CPU).weights == scheme
    with pytest.raises(
        ModelLoadError, match=f"quantization: '{scheme}' is .* this GGUF file has Q4_K, Q6_K: use 'gguf'"
    ):
        quantisation_of(config, gguf_with(checkpoint, "F32", "Q6_K", "Q4_K"), CPU)


@pytest.mark.parametrize(("device", "stay"), [(CPU, True), (GPU, False)])
def test_a_gguf_files_codes_stay_where_that_is_asked_for_on_a_cpu(checkpoint, device, stay):
    gguf_file = gguf_with(checkpoint, "Q4_0")
    assert quantisation_of(EngineConfig(quantization="gguf"), gguf_file, device) == Quantisation(gguf_codes=stay)
    assert quantisation_of(EngineConfig(), gguf_file, device) == Quantisation()


def test_a_gguf_file_is_not_quantised_once_more(checkpoint, capability):
    capability(9, 0)
    gguf_file = gguf_with(checkpoint, "F16")
    with pytest.raises(ModelLoadError, match="quantization: 'fp8' is for unquantised weights; this GGUF file"):
        quantisation_of(EngineConfig(quantization="fp8"), gguf_file, GPU)
    assert quantisation_of(EngineConfig(kv_cache_dtype="fp8"), gguf_file, GPU) == Quantisation(fp8_kv_cache=True)
