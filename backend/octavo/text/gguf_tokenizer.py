"""A tokenizer from the metadata of a GGUF file: its vocabulary is there, its rules are only named.

Knows which rules stand behind `tokenizer.ggml.model` and `tokenizer.ggml.pre`; refuses names it does not know.
Keys: the GGUF specification, "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from octavo.errors import ModelLoadError

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"
_NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Rules:
    """How a byte-level vocabulary was trained. Without a `split` the text is cut by GPT-2's expression."""

    split: str | None = None
    single_digits: bool = False
    nfc: bool = False
    # Whole words that are tokens are taken as such, even where the merges do not lead there.
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = _Rules()
_LLAMA3 = _Rules(split=_LLAMA3_SPLIT, ignore_merges=True, add_bos=True)
_RULES = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _Rules(single_digits=True),
    "qwen2": _Rules(split=_QWEN2_SPLIT, nfc=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "tekken": _Rules(split=_TEKKEN_SPLIT, ignore_merges=True, add_bos=True),
}


def build_from_gguf(metadata: Mapping[str, Any]) -> tuple[Backend, dict[str, str]]:
    """The tokenizer, and the texts of its named special tokens ("bos_token", ...).

    Raises ModelLoadError that names the key that is missing, or whose value is not known.
    """
    tokens: list[str] = _required(metadata, "tokens")
    named = {
        name: tokens[token_id]
        for name, key in _NAMED_TOKENS.items()
        if (token_id := _key(metadata, f"{key}_token_id", None)) is not None and token_id < len(tokens)
    }
    kind = _required(metadata, "model")
    if kind == "gpt2":
        rules = _rules(metadata)
        backend, add_bos = _byte_level(metadata, tokens, rules), rules.add_bos
    elif kind == "llama":
        backend, add_bos = _sentencepiece(metadata, tokens, named.get("unk_token")), True
    else:
        raise ModelLoadError(f"tokenizer.ggml.model {kind!r} is not supported; known are gpt2, llama")
    _add_tokens(backend, tokens, _key(metadata, "token_type", []), named)
    bos = named.get("bos_token") if _key(metadata, "add_bos_token", add_bos) else None
    eos = named.get("eos_token") if _key(metadata, "add_eos_token", False) else None
    backend.post_processor = TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos) if token],
    )
    return backend, named


def _key(metadata: Mapping[str, Any], name: str, default: Any) -> Any:
    return metadata.get(f"tokenizer.ggml.{name}", default)


def _required(metadata: Mapping[str, Any], name: str) -> Any:
    value = _key(metadata, name, None)
    if value is None:
        raise ModelLoadError(f"there is no key 'tokenizer.ggml.{name}': the file holds no whole tokenizer")
    return value


def _rules(metadata: Mapping[str, Any]) -> _Rules:
    name = _key(metadata, "pre", "default")
    if name not in _RULES:
        raise ModelLoadError(
            f"tokenizer.ggml.pre {name!r} is not supported; known are {', '.join(_RULES)}. "
            "Name a folder with the model's tokenizer.json as `tokenizer`"
        )
    return _RULES[name]


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], rules: _Rules) -> Backend:
    merges = [_pair(merge) for merge in _required(metadata, "merges")]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    try:
        backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=rules.ignore_merges))
    except Exception as error:  # The library has no error type of its own; only the merges can be at fault.
        raise ModelLoadError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from None
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rules.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.split:
        steps.append(pre_tokenizers.Split(Regex(rules.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], unknown: str | None) -> Backend:
    """Characters merged best score first, bytes for what is not in the vocabulary, a space before the text."""
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    listed = _key(metadata, "merges", None)
    if listed is None:
        scores = _required(metadata, "scores")
        if len(scores) != len(tokens):
            raise ModelLoadError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
        merges = _merges_from_scores(vocab, scores)
    else:
        merges = [_pair(merge) for merge in listed]
    try:
        model = models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    except Exception as error:  # The library has no error type of its own; only the merges can be at fault.
        raise ModelLoadError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from None
    backend = Backend(model)
    prefix = bool(_key(metadata, "add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return backend


def _pair(merge: str) -> tuple[str, str]:
    # The first character may be a space, so a merge is cut at the first one behind it.
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _merges_from_scores(vocab: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others: best score first, then longest left, then longest right."""
    ways = [
        (-scores[token_id], -cut, cut - len(token), token)
        for token, token_id in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    ways.sort(key=lambda way: way[:3])
    return [(token[:-cut], token[-cut:]) for _, cut, _, token in ways]


def _add_tokens(backend: Backend, tokens: list[str], token_types: list[int], named: Mapping[str, str]) -> None:
    """Control and named tokens are special, user-defined ones are matched whole but are ordinary text."""
    special = {token for token, kind in zip(tokens, token_types, strict=False) if kind == _CONTROL}
    special.update(named.values())
    ordinary = [token for token, kind in zip(tokens, token_types, strict=False) if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens if t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in ordinary if t not in special])
