"""Tokenizers from model folders; transformers is the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text.tiny_tokenizers import TEXTS, folder_checkpoint, train_byte_level
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from octavo.errors import InvalidRequest, ModelLoadError
from octavo.text.tokenizer import Tokenizer, bad_words_token_ids, open_tokenizer

FOLDERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bos asked for": {"add_bos_token": True, "add_eos_token": True},
    "bos refused": {"add_bos_token": False},
    "declared tokens": {
        "added_tokens_decoder": {
            "400": {"content": "<tool>", "special": False, "normalized": False, "lstrip": False, "rstrip": False},
            "401": {"content": "<secret>", "special": True, "normalized": False, "lstrip": False, "rstrip": False},
        }
    },
    "extra special": {"extra_special_tokens": ["the"]},
}


def open_folder(folder: Path) -> Tokenizer:
    return open_tokenizer(folder_checkpoint(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_folder_tokenises_as_transformers_does(make_folder: Callable[..., Path], name: str, adds_bos: bool) -> None:
    backend = train_byte_level()
    if adds_bos:
        backend.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    folder = make_folder(backend, tokenizer_class="TokenizersBackend", **FOLDERS[name])
    oracle, tokenizer = AutoTokenizer.from_pretrained(folder), open_folder(folder)
    for text in [*TEXTS, "<tool> the <secret>"]:
        for special in (False, True):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == oracle.encode(text, add_special_tokens=special)
            assert tokenizer.decode(ids, special) == oracle.decode(ids, special, clean_up_tokenization_spaces=False)
    assert tokenizer.special_token_ids == set(oracle.all_special_ids) | {
        i for i, token in oracle.added_tokens_decoder.items() if token.special
    }
    assert (tokenizer.bos_token, tokenizer.eos_token) == (oracle.bos_token, oracle.eos_token)
    assert tokenizer.vocab_size == len(oracle)


def test_limits_saved_with_a_tokenizer_are_not_the_requests(make_folder: Callable[..., Path]) -> None:
    backend = train_byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    tokenizer = open_folder(make_folder(backend))
    assert len(tokenizer.encode("\n\ta")) == 3
    assert len(tokenizer.encode("0")) == 1


def test_a_name_for_a_token_that_is_not_there_adds_none(make_folder: Callable[..., Path]) -> None:
    tokenizer = open_folder(make_folder(mask_token="<mask>"))
    assert tokenizer.vocab_size == 400


def test_a_path_may_be_a_folder_or_a_file(make_folder: Callable[..., Path], smollm2: Tokenizer) -> None:
    folder = make_folder()
    for path in (folder, folder / "tokenizer.json"):
        tokenizer = open_tokenizer(folder_checkpoint(folder / "elsewhere"), str(path))
        assert (tokenizer.vocab_size, tokenizer.bos_token) == (400, "<|bos|>")


def test_the_chat_template_is_found_wherever_folders_keep_it(make_folder: Callable[..., Path]) -> None:
    assert open_folder(make_folder()).chat_template is None
    assert open_folder(make_folder(chat_template="plain")).chat_template == "plain"
    listed = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "usual"}]
    folder = make_folder(chat_template=listed)
    assert open_folder(folder).chat_template == "usual"
    (folder / "chat_template.jinja").write_text("file")
    assert open_folder(folder).chat_template == "file"


def test_what_is_missing_or_broken_is_named(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is missing"):
        open_folder(tmp_path)
    folder = make_folder()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json is not a JSON file"):
        open_folder(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unheard"}}))
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is not a tokenizer"):
        open_folder(folder)


def test_text_that_utf8_cannot_hold_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        byte_level.encode("a\ud800")


def test_ids_without_a_token_decode_to_nothing(byte_level: Tokenizer) -> None:
    assert byte_level.decode([*byte_level.encode("a"), 9999, *byte_level.encode("b")]) == "ab"
    assert byte_level.token_text(9999) == ""


def test_one_token_keeps_its_space_and_special_tokens_their_text(
    byte_level: Tokenizer, sentencepiece: Tokenizer
) -> None:
    assert byte_level.token_text(byte_level.encode(" the")[0]) == " the"
    assert byte_level.token_text(1) == "<|bos|>"
    assert sentencepiece.token_text(sentencepiece.encode("the", add_special_tokens=False)[0]).startswith(" ")
    assert sentencepiece.token_text(3 + 0xE6) == "\ufffd"


def test_bad_words_are_tokenised_with_and_without_a_space(byte_level: Tokenizer) -> None:
    assert sorted(bad_words_token_ids(byte_level, ["the"])) == sorted(
        [byte_level.encode("the"), byte_level.encode(" the")]
    )
    assert bad_words_token_ids(byte_level, []) == []


def test_bad_words_are_found_inside_a_line_where_every_text_begins_with_a_space(sentencepiece: Tokenizer) -> None:
    texts = {"".join(map(sentencepiece.token_text, ids)) for ids in bad_words_token_ids(sentencepiece, ["fox", "fox"])}
    assert texts == {"fox", " fox"}


def test_a_bad_word_that_no_token_can_write_is_refused() -> None:
    backend = train_byte_level()
    backend.normalizer = normalizers.Replace("unwritable", "")
    with pytest.raises(InvalidRequest, match="bad_words: 'unwritable' is not allowed"):
        bad_words_token_ids(Tokenizer(backend, {}, None), ["the", "unwritable"])
