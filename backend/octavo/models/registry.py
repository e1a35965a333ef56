"""ARCHITECTURES, and how a checkpoint becomes a model. A family's module is imported only when its model is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

import torch

from octavo.checkpoint import Checkpoint
from octavo.errors import ModelLoadError, shorten
from octavo.layers.linear import WeightCodes
from octavo.models.config import NOT_QUANTISED, DecoderSpec, Quantisation
from octavo.models.decoder import Decoder
from octavo.models.gguf_weights import GGUFReader
from octavo.models.weights import ShapeSource, WeightReader, WeightSource, open_weights

# The name in a config.json's "architectures" -> "module:Class".
ARCHITECTURES = {
    "LlamaForCausalLM": "octavo.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "octavo.models.mistral:MistralForCausalLM",
    "Qwen2ForCausalLM": "octavo.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "octavo.models.qwen3:Qwen3ForCausalLM",
}


def read_model_spec(checkpoint: Checkpoint) -> DecoderSpec:
    """The model's shape without its weights; raises ModelLoadError."""
    return _model_class(checkpoint).read_spec(checkpoint.config)


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[str, float], None],
    quantisation: Quantisation = NOT_QUANTISED,
) -> Decoder:
    """Reads the weights, layer by layer, straight into `dtype` on `device`; those to be quantised at once.

    on_progress(phase, fraction) is called as tensors arrive. Raises ModelLoadError that names the key or tensor.
    """
    model_class = _model_class(checkpoint)
    if checkpoint.config.get("quantization_config"):
        raise ModelLoadError("config.json: quantization_config is not supported; use unquantised weights or GGUF")
    with open_weights(checkpoint, device) as reader, torch.inference_mode():
        spec = replace(model_class.read_spec(checkpoint.config), quantisation=quantisation)
        spec = _with_rope_factors(spec, reader)
        weights = WeightSource(reader, dtype, device, on_progress, _codes_reader(reader, quantisation))
        model = model_class(spec, weights)
        weights.finish(ignored=("lm_head.weight",) if spec.tied_embeddings else ())
    return model


def shape_model(checkpoint: Checkpoint, dtype: torch.dtype, quantisation: Quantisation = NOT_QUANTISED) -> Decoder:
    """The model without its weights, on the meta device: nothing of the weight files is read."""
    model_class = _model_class(checkpoint)
    spec = replace(model_class.read_spec(checkpoint.config), quantisation=quantisation)
    with torch.inference_mode():
        return model_class(spec, ShapeSource(dtype))


def _codes_reader(reader: WeightReader, quantisation: Quantisation) -> Callable[[str], WeightCodes | None]:
    if quantisation.gguf_codes and isinstance(reader, GGUFReader):
        return reader.read_codes
    return lambda name: None


def _with_rope_factors(spec: DecoderSpec, reader: WeightReader) -> DecoderSpec:
    factors = reader.rope_factors if isinstance(reader, GGUFReader) else ()
    return replace(spec, rope=replace(spec.rope, frequency_factors=factors)) if factors else spec


def _model_class(checkpoint: Checkpoint) -> type[Decoder]:
    names = checkpoint.config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if name in ARCHITECTURES:
            module, _, class_name = ARCHITECTURES[name].partition(":")
            found: type[Decoder] = getattr(importlib.import_module(module), class_name)
            return found
    known = ", ".join(ARCHITECTURES)
    raise ModelLoadError(f"config.json: architectures {shorten(names)} is not supported; known are {known}")
