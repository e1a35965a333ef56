"""The embedded model, dequantised to fp32, with its channels in another order: the same function of its tokens.

The file's own codes lie on a grid of groups of 32 inputs; whoever quantises groups of the same 32 finds that grid again
and loses nothing. In another order no group is one of the file's, as in a model that was never quantised.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.models.weights import open_weights

_READS_CHANNELS = re.compile(r"embed_tokens|[qkv]_proj|gate_proj|up_proj|lm_head")
_WRITES_CHANNELS = re.compile(r"o_proj|down_proj|\w*norm")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def write_shuffled(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes config.json and model.safetensors, fp32."""
    config = checkpoint.config
    with open_weights(checkpoint, torch.device("cpu")) as reader:
        tensors = {name: reader.read(name, torch.float32) for name in reader.shapes}
    shuffled = shuffle(tensors, config["num_attention_heads"], config["num_key_value_heads"])
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in shuffled.items()}, folder / "model.safetensors")


def shuffle(tensors: dict[str, Tensor], num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """Llama's tensors with the hidden channels, those of each MLP and the values of each head in a random order."""
    generator = torch.Generator().manual_seed(0)

    def order(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    hidden = order(tensors["model.norm.weight"].shape[0])
    found = dict(tensors)
    for layer in sorted({match[0] for name in tensors if (match := _LAYER.match(name))}):
        gate, up, down = (f"{layer}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        inner = order(tensors[gate].shape[0])
        found |= {gate: tensors[gate][inner], up: tensors[up][inner], down: tensors[down][:, inner]}
        value, output = (f"{layer}self_attn.{name}_proj.weight" for name in ("v", "o"))
        head_dim = tensors[value].shape[0] // num_kv_heads
        within = [order(head_dim) for _ in range(num_kv_heads)]
        of_values = torch.cat([head * head_dim + within[head] for head in range(num_kv_heads)])
        share = num_heads // num_kv_heads
        of_outputs = torch.cat([head * head_dim + within[head // share] for head in range(num_heads)])
        found |= {value: tensors[value][of_values], output: tensors[output][:, of_outputs]}
    for name, tensor in found.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if _READS_CHANNELS.fullmatch(part):
            found[name] = tensor[:, hidden]
        elif _WRITES_CHANNELS.fullmatch(part):
            found[name] = tensor[hidden]
    return found
