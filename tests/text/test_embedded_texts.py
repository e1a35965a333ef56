"""How texts that become vectors or scores are read: end tokens, pairs, cut ones. transformers is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text.tiny_tokenizers import folder_checkpoint, train_byte_level
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing, PostProcessor, RobertaProcessing, TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from octavo.errors import ModelLoadError
from octavo.text.tokenizer import Tokenizer, open_tokenizer

IDS = [("<|bos|>", 1), ("<|eos|>", 2)]
AROUND = {
    "nothing": None,
    "its end": TemplateProcessing(single="$A <|eos|>", special_tokens=IDS[1:]),
    "BERT's": BertProcessing(IDS[1], IDS[0]),
    "RoBERTa's": RobertaProcessing(IDS[1], IDS[0], trim_offsets=True, add_prefix_space=False),
    "its own": TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A:0 <|eos|>:1 <|eos|>:1 $B:1", special_tokens=IDS
    ),
}


@pytest.fixture(params=AROUND.values(), ids=list(AROUND))
def around(request: pytest.FixtureRequest) -> PostProcessor | None:
    return request.param  # type: ignore[no-any-return]


def backend_with(around: PostProcessor | None) -> Backend:
    backend = train_byte_level()
    if around is not None:
        backend.post_processor = around
    return backend


Both = tuple[Tokenizer, Any]


@pytest.fixture
def open_both(make_folder: Callable[..., Path]) -> Callable[..., Both]:
    """Our tokenizer and transformers' of the same folder."""

    def opened(backend: Backend, **config: Any) -> Both:
        folder = make_folder(backend, **config)
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        return open_tokenizer(folder_checkpoint(folder)), theirs

    return opened


@pytest.mark.parametrize("flags", [{}, {"add_eos_token": True, "add_bos_token": True}, {"add_eos_token": False}])
def test_the_end_token_is_there_where_transformers_has_it(
    open_both: Callable[..., Both], around: PostProcessor | None, flags: dict[str, bool]
) -> None:
    # tokenizer.json decides: what tokenizer_config.json says of it is older than the file.
    ours, theirs = open_both(backend_with(around), **flags)
    for text in ("the fox", "", "a <|eos|> b"):
        assert ours.encode(text) == theirs(text).input_ids


def test_pairs_are_put_together_as_transformers_does(
    open_both: Callable[..., Both], around: PostProcessor | None
) -> None:
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    ours, theirs = open_both(backend_with(around), model_input_names=inputs)
    query, document = "the quick fox", "a lazy dog jumps over it <|eos|> again"
    expected = theirs(query, document)
    assert ours.encode_pair(query, document) == (expected.input_ids, expected.token_type_ids)
    for max_tokens in (14, 17, 1000):
        cut = theirs(query, document, truncation="only_second", max_length=max_tokens)
        assert ours.encode_pair(query, document, max_tokens) == (cut.input_ids, cut.token_type_ids)


@pytest.mark.parametrize("said", [{"model_input_names": ["input_ids"]}, {"tokenizer_class": "TokenizersBackend"}])
def test_a_model_that_is_not_told_the_texts_apart(open_both: Callable[..., Both], said: dict[str, Any]) -> None:
    ours, theirs = open_both(backend_with(AROUND["BERT's"]), **said)
    assert "token_type_ids" not in theirs("a", "b")
    assert ours.encode_pair("a", "b") == (theirs("a", "b").input_ids, [])


def test_the_beginning_of_a_text_keeps_what_is_around_it(
    open_both: Callable[..., Both], around: PostProcessor | None
) -> None:
    ours, theirs = open_both(backend_with(around))
    text = "the quick brown fox jumps over the lazy dog"
    for max_tokens in (2, 3, 7, 1000):
        expected = theirs(text, truncation=True, max_length=max_tokens).input_ids
        assert ours.encode_beginning(text, max_tokens) == expected


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Äb", "äb", "Ab", "ab", "中", "文", "中文"]


@pytest.fixture
def bert_folder(make_folder: Callable[..., Path]) -> Callable[..., Path]:
    """A BERT's tokenizer, which keeps capitals, with these words in tokenizer_config.json."""

    def make(**config: Any) -> Path:
        backend = Backend(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = BertNormalizer(lowercase=False), BertPreTokenizer()
        return make_folder(backend, bos_token=None, eos_token=None, pad_token="[PAD]", **config)

    return make


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False, "strip_accents": False},
    ],
)
def test_a_berts_capitals_are_what_transformers_makes_of_its_files(
    bert_folder: Callable[..., Path], name: str, said: dict[str, bool]
) -> None:
    folder = bert_folder(tokenizer_class=name, **said)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = open_tokenizer(folder_checkpoint(folder))
    text = "Äb Ab ab 中文"
    assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids


def test_a_flag_of_a_berts_tokenizer_that_is_none_fails_the_load(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(tokenizer_class="BertTokenizer", do_lower_case="yes")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json: do_lower_case is 'yes'"):
        open_tokenizer(folder_checkpoint(folder))
