"""Tokenizers from GGUF metadata; transformers is the oracle, its known mistakes put right here."""

from __future__ import annotations

from typing import Any

import pytest
from text.tiny_tokenizers import CORPUS, TEXTS, gguf_checkpoint
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer

from octavo.errors import ModelLoadError
from octavo.text.tokenizer import Tokenizer, open_tokenizer

Metadata = dict[str, Any]


def converted(metadata: Metadata) -> Backend:
    """What transformers makes of the same keys."""
    names = {"model": "tokenizer_type", "pre": "pre_tokenizer_type"}
    keys = ("model", "pre", "tokens", "merges", "token_type", "scores")
    values = {names.get(key, key): metadata.get(f"tokenizer.ggml.{key}") for key in keys}
    backend, _ = convert_gguf_tokenizer("llama", {key: value for key, value in values.items() if value is not None})
    return backend


def open_metadata(metadata: Metadata, **keys: Any) -> Tokenizer:
    return open_tokenizer(gguf_checkpoint(metadata | {f"tokenizer.ggml.{k}": v for k, v in keys.items()}))


def assert_same(tokenizer: Tokenizer, oracle: Backend, texts: list[str]) -> None:
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == oracle.encode(text, add_special_tokens=False).ids, text
        for skip in (False, True):
            assert tokenizer.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)


@pytest.mark.slow
def test_smollm2_tokenises_as_transformers_does_with_single_digits(
    smollm2: Tokenizer, smollm2_metadata: Metadata
) -> None:
    oracle = converted(smollm2_metadata)
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert_same(smollm2, oracle, TEXTS)


def test_smollm2_keeps_a_number_apart_from_the_newlines_before_it(smollm2: Tokenizer) -> None:
    assert [smollm2.token_text(i) for i in smollm2.encode("\n\n1. A")] == ["\n\n", "1", ".", " A"]


def test_smollm2_has_its_special_tokens_and_template(smollm2: Tokenizer) -> None:
    assert smollm2.special_token_ids == frozenset(range(17))
    assert (smollm2.bos_token, smollm2.eos_token, smollm2.vocab_size) == ("<|im_start|>", "<|im_end|>", 49152)
    assert smollm2.encode("<|im_start|>user<|im_end|>") == [1, *smollm2.encode("user"), 2]
    assert smollm2.chat_template is not None


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "tekken", "default", "gpt-2"])
def test_byte_level_vocabularies_are_cut_as_their_name_says(smollm2_metadata: Metadata, pre: str) -> None:
    metadata = smollm2_metadata | {"tokenizer.ggml.pre": pre}
    assert_same(open_metadata(metadata), converted(metadata), TEXTS)


@pytest.mark.slow
def test_qwen2_is_cut_and_normalised_as_its_own_tokenizer_does(smollm2_metadata: Metadata) -> None:
    tokenizer = open_metadata(smollm2_metadata, pre="qwen2")
    vocab = {token: i for i, token in enumerate(smollm2_metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in smollm2_metadata["tokenizer.ggml.merges"]]
    oracle = Qwen2Tokenizer(vocab=vocab, merges=merges)
    for text in TEXTS:
        if "<|" not in text:
            assert tokenizer.encode(text, add_special_tokens=False) == oracle.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(("pre", "begins"), [("smollm", False), ("llama-bpe", True)])
def test_bos_is_added_where_the_file_or_else_its_kind_says_so(
    smollm2_metadata: Metadata, pre: str, begins: bool
) -> None:
    small = tiny_byte_level(pre)
    assert open_metadata(small).encode("a") == ([0] if begins else []) + [2]
    assert open_metadata(small, add_bos_token=True).encode("a") == [0, 2]
    assert open_metadata(small, add_bos_token=False).encode("a") == [2]
    assert open_metadata(small, add_bos_token=True, add_eos_token=True).encode("a") == [0, 2, 1]
    assert open_metadata(small, add_bos_token=True).encode("a", add_special_tokens=False) == [2]


def tiny_byte_level(pre: str = "default") -> Metadata:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "abab", "<think>"],
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 4],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def test_a_whole_word_that_is_a_token_beats_the_merges_for_llama3_only() -> None:
    assert open_metadata(tiny_byte_level("llama-bpe")).encode("abab", add_special_tokens=False) == [5]
    assert open_metadata(tiny_byte_level("default")).encode("abab", add_special_tokens=False) == [4, 4]


def test_user_defined_tokens_are_whole_but_not_special() -> None:
    tokenizer = open_metadata(tiny_byte_level())
    assert tokenizer.encode("a<think>b") == [2, 6, 3]
    assert tokenizer.decode([0, 2, 6, 3, 1]) == "a<think>b"
    assert tokenizer.special_token_ids == {0, 1}


@pytest.mark.parametrize("with_merges", [False, True])
def test_scored_vocabularies_tokenise_as_transformers_does(sentencepiece_metadata: Metadata, with_merges: bool) -> None:
    metadata = dict(sentencepiece_metadata)
    if with_merges:
        metadata["tokenizer.ggml.merges"] = ["h e", "▁ t", "▁t he"]
    assert_same(open_metadata(metadata), converted(metadata), TEXTS + CORPUS)


def test_scored_vocabularies_fall_back_to_bytes_and_begin_with_bos(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("😀")
    assert ids[0] == 1
    assert ids[-4:] == [3 + byte for byte in "😀".encode()]
    assert sentencepiece.decode(ids) == "😀"


def test_a_space_before_the_text_is_left_out_where_the_file_says_so(sentencepiece_metadata: Metadata) -> None:
    tokenizer = open_metadata(sentencepiece_metadata, add_space_prefix=False)
    ids = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.token_text(ids[0])[0] != " "
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pre": "unheard-of"}, r"model\.gguf: tokenizer\.ggml\.pre 'unheard-of' is not supported; known are default"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model 'bert' is not supported"),
        ({"tokens": None}, r"no key 'tokenizer\.ggml\.tokens'"),
        ({"merges": None}, r"no key 'tokenizer\.ggml\.merges'"),
        ({"model": "llama", "merges": None, "scores": [0.0]}, r"tokenizer\.ggml\.scores has 1 entries for 7 tokens"),
        ({"merges": ["x y"]}, r"tokenizer\.ggml\.merges do not fit"),
    ],
)
def test_what_is_missing_or_unknown_is_named(keys: Metadata, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        open_metadata(tiny_byte_level(), **keys)
