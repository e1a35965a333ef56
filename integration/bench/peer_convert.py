"""The embedded model as a folder that other engines read: its weights dequantised to bf16, and its own tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peer import load_llama
from transformers import GenerationConfig, PreTrainedTokenizerFast

from octavo.checkpoint import open_checkpoint
from octavo.text.gguf_tokenizer import build_from_gguf


def convert(folder: Path) -> None:
    checkpoint = open_checkpoint(None)
    assert checkpoint.gguf is not None, "the embedded model is a GGUF file"
    config = checkpoint.config
    model = load_llama(None, torch.bfloat16)
    named = {name: config[name] for name in ("bos_token_id", "eos_token_id")} | {"pad_token_id": config["eos_token_id"]}
    model.config.update(named)
    model.generation_config = GenerationConfig(**named)
    model.save_pretrained(folder)
    # Older readers look for it beside the dictionary that newer ones write.
    file = folder / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(written | {"rope_theta": config["rope_parameters"]["rope_theta"]}, indent=2))
    backend, special = build_from_gguf(checkpoint.gguf)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = checkpoint.gguf["tokenizer.chat_template"]
    tokenizer.save_pretrained(folder)
    # A name that every release knows.
    file = folder / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    written.pop("backend", None)
    file.write_text(json.dumps(written, indent=2))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
