"""Encoders of random weights in folders of their own, tokenizers included, as transformers saves them."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers

LETTERS = [*string.ascii_letters, *string.digits, ".", "?", "!"]
SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 88,
    "max_position_embeddings": 66,
    "initializer_range": 0.3,
}
CROSS_ENCODERS = [f"{name}ForSequenceClassification" for name in ("Bert", "Roberta", "XLMRoberta")]


def make_encoder(architecture: str, folder: Path, num_labels: int = 1, **config: Any) -> tuple[Any, Any]:
    """Transformers' model, in evaluation mode, and its tokenizer; both lie in `folder` then."""
    family = re.sub("(Model|For.*)$", "", architecture)
    tokenizer = _TOKENIZERS[family]()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    # A RoBERTa has one type of tokens, and a BERT two.
    shape = SHAPE | {"type_vocab_size": 2 if family == "Bert" else 1} | config
    spec = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), num_labels=num_labels, **shape)
    model = getattr(transformers, architecture)(spec).eval()
    model.save_pretrained(folder)
    return model, tokenizer


def _bert_tokenizer() -> Any:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*marks, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=False)


def _roberta_tokenizer() -> Any:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return transformers.RobertaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def _xlm_roberta_tokenizer() -> Any:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *LETTERS, "<mask>"]
    return transformers.XLMRobertaTokenizer(vocab=[(token, 0.0 if i < 4 else -2.0) for i, token in enumerate(tokens)])


_TOKENIZERS = {"Bert": _bert_tokenizer, "Roberta": _roberta_tokenizer, "XLMRoberta": _xlm_roberta_tokenizer}
