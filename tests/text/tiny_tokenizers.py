"""Texts, a byte-level tokenizer trained on the spot, and checkpoints as far as a tokenizer looks at one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.checkpoint import Checkpoint

CORPUS = [
    "the quick brown fox jumps over the lazy dog. in the beginning there was a model, and the model was tiny.",
    "def f(x):\n    return x + 1\n",
    "What is the capital of France? Paris. 0123456789",
    "naïve café, größer, Москва, 東京, 😀 👨‍👩‍👧",
] * 4
SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "",
    "Hello, world!",
    "  two leading spaces and trailing  ",
    "\n\n1. First\n\n2. Second\n\n\n\n10. Tenth",
    "1234567890 3.14159 1,000,000 ٣٤٥ ½",
    "def f(x: int) -> str:\n\treturn f'{x:>08}'  # ok\n\n\nclass A: ...",
    "naïve cafe\u0301 größer Москва 東京 مرحبا हिन्दी",
    "😀👨‍👩‍👧🏳️‍🌈 \u200b zero width \ufffd",
    "I'm you're WE'LL they'd it's don't",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a\r\nb\r\n\r\n\tc   \n   d",
    " ".join(["word"] * 50) + "\n" * 30,
]


def train_byte_level() -> Backend:
    """A byte-level BPE of 400 tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def folder_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint as far as a tokenizer looks at one."""
    return Checkpoint(path=folder, config={}, generation_config={}, weight_files=())


def gguf_checkpoint(metadata: Mapping[str, Any]) -> Checkpoint:
    """A GGUF checkpoint as far as a tokenizer looks at one."""
    return Checkpoint(
        path=Path("model.gguf"),
        config={},
        generation_config={},
        weight_files=(),
        gguf=metadata,  # type: ignore[arg-type]
    )
