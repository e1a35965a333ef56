"""The tensors of a GGUF file under Hugging Face names, dequantised or as codes. Knows the names and llama's row order.

Facts: the GGUF specification, "Standardized tensor names".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from octavo.errors import ModelLoadError
from octavo.layers.linear import WeightCodes
from octavo.models.gguf_codes import codes_of

_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Numbers dequantised at once, in fp32: keeps the working set in cache and the peak of memory small.
_CHUNK_NUMBERS = 1 << 20


class GGUFReader:
    """Tensors by Hugging Face name. `rope_factors` are the frequency factors that the file brings, or empty."""

    def __init__(self, reader: Any, config: Mapping[str, Any]) -> None:
        self._tensors: dict[str, Any] = {}
        self.rope_factors: tuple[float, ...] = ()
        for tensor in reader.tensors:
            if tensor.name == _ROPE_FACTORS:
                self.rope_factors = tuple(_dequantize(tensor, torch.float32).tolist())
            else:
                self._tensors[_hugging_face_name(tensor.name)] = tensor
        self.shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        # Only the "llama" architecture stores rotated pairs side by side; Hugging Face has them half a head apart.
        self._num_interleaved_heads: dict[str, int] = {}
        if config["model_type"] == "llama":
            self._num_interleaved_heads = {
                "q_proj": config["num_attention_heads"],
                "k_proj": config["num_key_value_heads"],
            }

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Dequantises to `dtype`."""
        return self._in_order(name, _dequantize(self._tensors[name], dtype))

    def read_codes(self, name: str) -> WeightCodes | None:
        """The tensor as it lies in the file; None if it is not there, or its type is not one of gguf_codes.py."""
        found = codes_of(self._tensors[name]) if name in self._tensors else None
        if found is None:
            return None
        minima = None if found.minima is None else self._in_order(name, found.minima)
        return WeightCodes(found.kind, self._in_order(name, found.codes), self._in_order(name, found.scales), minima)

    def _in_order(self, name: str, tensor: Tensor) -> Tensor:
        """Rows as Hugging Face has them."""
        num_heads = self._num_interleaved_heads.get(name.split(".")[-2])
        if not num_heads:
            return tensor
        return tensor.reshape(num_heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _hugging_face_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _IN_LAYER:
        return f"model.layers.{parts[1]}.{_IN_LAYER[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _TOP_LEVEL:
        return f"{_TOP_LEVEL[parts[0]]}.{parts[1]}"
    return name


def _shape(tensor: Any) -> tuple[int, ...]:
    """GGUF counts dimensions from the fastest."""
    return tuple(int(size) for size in reversed(tensor.shape.tolist()))


def _dequantize(tensor: Any, dtype: torch.dtype) -> Tensor:
    shape = _shape(tensor)
    result = torch.empty(shape, dtype=dtype)
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    flat = result.view(-1, shape[-1])
    step = max(1, _CHUNK_NUMBERS // shape[-1])
    try:
        for start in range(0, rows.shape[0], step):
            chunk = gguf.dequantize(rows[start : start + step], tensor.tensor_type)
            # Unquantised tensors come back as a read-only view of the file.
            flat[start : start + step] = torch.from_numpy(chunk if chunk.flags.writeable else chunk.copy())
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ModelLoadError(f"tensor {tensor.name} has GGUF type {kind}, which cannot be read") from None
    return result
