"""A model folder for the fake executor: one token a byte, a chat template, and no weights worth the name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

FAKE_EOS = 256
FAKE_VOCAB_SIZE = 258


def make_fake_model(folder: Path, max_position_embeddings: int = 1024) -> Path:
    """Writes a model folder whose tokens are bytes (and EOS, 256), for use with the fake executor; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["FakeForCausalLM"],
        "vocab_size": FAKE_VOCAB_SIZE,
        "max_position_embeddings": max_position_embeddings,
        "eos_token_id": FAKE_EOS,
        "hidden_size": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_byte_tokenizer()))
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    header = json.dumps({"unused": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def _byte_tokenizer() -> dict[str, object]:
    """A tokenizer.json with one token a byte; byte-level BPE names each byte by a printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    special = [(FAKE_EOS, "<eos>"), (FAKE_EOS + 1, "<bos>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": text, **flags} for token_id, text in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {names[byte]: byte for byte in range(256)} | {text: token_id for token_id, text in special},
            "merges": [],
        },
    }
