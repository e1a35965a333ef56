"""Tokenizers to test with: the embedded model's, and tiny ones of every kind, trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text.tiny_tokenizers import CORPUS, gguf_checkpoint, train_byte_level
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo.checkpoint import GGUFMetadata, default_model
from octavo.text.tokenizer import Tokenizer, open_tokenizer


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with a byte-level tokenizer.json; keywords go to tokenizer_config.json."""

    def make(backend: Backend | None = None, **config: Any) -> Path:
        (backend or train_byte_level()).save(str(tmp_path / "tokenizer.json"))
        eos = {"__type": "AddedToken", "content": "<|eos|>", "special": True, "normalized": False}
        named = {"bos_token": "<|bos|>", "eos_token": eos, "pad_token": "<|pad|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | config))
        return tmp_path

    return make


@pytest.fixture(scope="session")
def smollm2_metadata() -> dict[str, Any]:
    """The embedded model's tokenizer keys, read once."""
    metadata = GGUFMetadata(default_model())
    return {key: metadata[key] for key in metadata if key.startswith("tokenizer.")}


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    return open_tokenizer(gguf_checkpoint(smollm2_metadata))


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(train_byte_level(), {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}, None)


@pytest.fixture(scope="session")
def sentencepiece_metadata() -> dict[str, Any]:
    """A GGUF vocabulary of the "llama" kind: specials, 256 bytes, then pieces whose scores are their order."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    backend.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in learned if "\n" not in piece]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, "<think>"],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces), 4],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_metadata: dict[str, Any]) -> Tokenizer:
    return open_tokenizer(gguf_checkpoint(sentencepiece_metadata))


@pytest.fixture(scope="session", params=["metaspace", "wordpiece", "suffix"])
def windowed(request: pytest.FixtureRequest) -> Tokenizer:
    """Tokenizers whose decoders are not known in detail."""
    words = ["the", "quick", "fox", "model", "s", "ing", "x", ",", "é"]
    if request.param == "metaspace":
        vocab = {token: i for i, token in enumerate([*words, *("▁" + word for word in words), "▁"])}
        backend = Backend(models.BPE(vocab=vocab, merges=[]))
        backend.decoder = decoders.Metaspace()
    elif request.param == "wordpiece":
        vocab = {token: i for i, token in enumerate([*words, *("##" + word for word in words)])}
        backend = Backend(models.WordPiece(vocab=vocab, unk_token="x"))
        backend.decoder = decoders.WordPiece()
    else:
        vocab = {token: i for i, token in enumerate([*words, *(word + "</w>" for word in words)])}
        backend = Backend(models.BPE(vocab=vocab, merges=[]))
        backend.decoder = decoders.BPEDecoder()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    return Tokenizer(backend, {"eos_token": "<eos>"}, None)
