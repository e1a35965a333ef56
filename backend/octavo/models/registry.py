"""ARCHITECTURES, and how a checkpoint becomes a model. A family's module is imported only when its model is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from octavo.checkpoint import Checkpoint
from octavo.errors import ModelLoadError, shorten
from octavo.layers.linear import WeightCodes
from octavo.models.config import NOT_QUANTISED, DecoderSpec, Quantisation
from octavo.models.gguf_weights import GGUFReader
from octavo.models.model import Model, ModelSpec
from octavo.models.weights import BodyReader, EncoderBodyReader, ShapeSource, WeightReader, WeightSource, open_weights

# How it is called in a checkpoint that holds the body alone, in any family.
_BODYS_TABLE = "embed_tokens.weight"
# How an encoder's body and its table are called in a checkpoint that holds more.
_ENCODER_BODIES, _ENCODERS_TABLE = ("bert.", "roberta."), "embeddings.word_embeddings.weight"
# The name in a config.json's "architectures" -> "module:Class".
ARCHITECTURES = {
    "BertForMaskedLM": "octavo.models.bert:BertModel",
    "BertForSequenceClassification": "octavo.models.bert:BertForSequenceClassification",
    "BertModel": "octavo.models.bert:BertModel",
    "LlamaForCausalLM": "octavo.models.llama:LlamaForCausalLM",
    "LlamaModel": "octavo.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "octavo.models.mistral:MistralForCausalLM",
    "MistralModel": "octavo.models.mistral:MistralForCausalLM",
    "Qwen2ForCausalLM": "octavo.models.qwen2:Qwen2ForCausalLM",
    "Qwen2Model": "octavo.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "octavo.models.qwen3:Qwen3ForCausalLM",
    "Qwen3Model": "octavo.models.qwen3:Qwen3ForCausalLM",
    "RobertaForMaskedLM": "octavo.models.roberta:RobertaModel",
    "RobertaForSequenceClassification": "octavo.models.roberta:RobertaForSequenceClassification",
    "RobertaModel": "octavo.models.roberta:RobertaModel",
    "XLMRobertaForMaskedLM": "octavo.models.roberta:RobertaModel",
    "XLMRobertaForSequenceClassification": "octavo.models.roberta:RobertaForSequenceClassification",
    "XLMRobertaModel": "octavo.models.roberta:RobertaModel",
}


def read_model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model's shape without its weights; raises ModelLoadError."""
    spec: ModelSpec = _spec_of(checkpoint)
    return spec


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[str, float], None],
    quantisation: Quantisation = NOT_QUANTISED,
) -> Model:
    """Reads the weights, layer by layer, straight into `dtype` on `device`; those to be quantised at once.

    on_progress(phase, fraction) is called as tensors arrive. Raises ModelLoadError that names the key or tensor.
    """
    model_class = _model_class(checkpoint)
    if checkpoint.config.get("quantization_config"):
        raise ModelLoadError("config.json: quantization_config is not supported; use unquantised weights or GGUF")
    with open_weights(checkpoint, device) as reader, torch.inference_mode():
        spec = replace(_spec_of(checkpoint), quantisation=quantisation)
        spec = _with_rope_factors(spec, reader)
        weights = WeightSource(
            _named_as_read(checkpoint, reader), dtype, device, on_progress, _codes_reader(reader, quantisation)
        )
        model = model_class(spec, weights)
        weights.finish(ignored=spec.unused_tensors)
    return model


def shape_model(checkpoint: Checkpoint, dtype: torch.dtype, quantisation: Quantisation = NOT_QUANTISED) -> Model:
    """The model without its weights, on the meta device: nothing of the weight files is read."""
    model_class = _model_class(checkpoint)
    spec = replace(_spec_of(checkpoint), quantisation=quantisation)
    with torch.inference_mode():
        return model_class(spec, ShapeSource(dtype))


def _spec_of(checkpoint: Checkpoint) -> Any:
    spec = _model_class(checkpoint).read_spec(checkpoint.config)
    # Nobody asks for a last layer that is not there: the embedding's table stands in its place.
    return spec if checkpoint.has_head or checkpoint.is_encoder else replace(spec, tied_embeddings=True)


def _named_as_read(checkpoint: Checkpoint, reader: WeightReader) -> WeightReader:
    """The tensors under the names that the model's class asks for, be they those of a body or of a whole model."""
    if _BODYS_TABLE in reader.shapes:
        return BodyReader(reader)
    if checkpoint.is_encoder and not checkpoint.is_cross_encoder:
        for prefix in _ENCODER_BODIES:
            if prefix + _ENCODERS_TABLE in reader.shapes:
                return EncoderBodyReader(reader, prefix)
    return reader


def _codes_reader(reader: WeightReader, quantisation: Quantisation) -> Callable[[str], WeightCodes | None]:
    if quantisation.gguf_codes and isinstance(reader, GGUFReader):
        return reader.read_codes
    return lambda name: None


def _with_rope_factors(spec: DecoderSpec, reader: WeightReader) -> DecoderSpec:
    factors = reader.rope_factors if isinstance(reader, GGUFReader) else ()
    return replace(spec, rope=replace(spec.rope, frequency_factors=factors)) if factors else spec


def _model_class(checkpoint: Checkpoint) -> type[Model]:
    if checkpoint.architecture in ARCHITECTURES:
        module, _, class_name = ARCHITECTURES[checkpoint.architecture].partition(":")
        found: type[Model] = getattr(importlib.import_module(module), class_name)
        return found
    names, known = checkpoint.config.get("architectures"), ", ".join(ARCHITECTURES)
    raise ModelLoadError(f"config.json: architectures {shorten(names)} is not supported; known are {known}")
