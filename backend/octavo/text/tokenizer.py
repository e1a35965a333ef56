"""Tokenizer: text to token ids and back, with the model's special tokens and chat template.

Opens what lies in a model folder; `gguf_tokenizer` builds the same from a GGUF file. Knows nothing of requests.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.processors import TemplateProcessing

from octavo.checkpoint import Checkpoint, GGUFMetadata, read_json
from octavo.errors import InvalidRequest, ModelLoadError, shorten
from octavo.sentence_files import reads_lower_case
from octavo.text.decoding import Decoding, open_decoding
from octavo.text.gguf_tokenizer import build_from_gguf
from octavo.vocabulary import Vocabulary

_BERTS = ("BertTokenizer", "BertTokenizerFast")
# Transformers' classes that tell no model the texts of a pair apart, where the folder does not say.
_TELL_NOTHING = ("TokenizersBackend", "DistilBertTokenizer", "DistilBertTokenizerFast")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """One model's tokenizer. Never changed after it is made, so any thread may use it.

    `special_tokens` maps the names that chat templates use ("bos_token", ...) to the tokens' texts.
    """

    def __init__(
        self,
        backend: Backend,
        special_tokens: Mapping[str, str],
        chat_template: str | None,
        tells_pairs_apart: bool = True,
    ) -> None:
        # Limits that a folder was saved with are about training batches, not about requests.
        backend.no_truncation()
        backend.no_padding()
        if backend.post_processor is None:
            # As transformers has it: without one, the tokens of a pair would all be of the first text.
            backend.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
        self._backend = backend
        self._tells_pairs_apart = tells_pairs_apart
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self.decoding: Decoding = open_decoding(backend)
        self.special_token_ids: frozenset[int] = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )

    @property
    def bos_token(self) -> str | None:
        """The text of the token that begins a sequence."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The text of the token that ends a sequence."""
        return self.special_tokens.get("eos_token")

    def special_token_id(self, text: str) -> int | None:
        """The special token that is written so, if there is one."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self.special_token_ids else None

    def showing(self, texts: Collection[str]) -> Tokenizer:
        """The same tokenizer, for which the tokens of these texts are not special: texts are shown with them in."""
        shown = {self.special_token_id(text) for text in texts} - {None}
        if not shown:
            return self
        tokenizer = copy.copy(self)
        tokenizer.special_token_ids = self.special_token_ids - shown
        return tokenizer

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What every token writes: for grammars. Takes a tenth of a second the first time."""
        tokens = [self.decoding.token_bytes(token_id) for token_id in range(self.vocab_size)]
        return Vocabulary(tokens, sorted(self.special_token_ids))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written out in it count as such.

        `add_special_tokens` adds what the model expects around a text (mostly BOS). Raises InvalidRequest for text
        that UTF-8 cannot hold.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):
            raise InvalidRequest("prompt", text, "text that UTF-8 can hold (no lone surrogates)") from None

    def encode_beginning(self, text: str, max_tokens: int) -> list[int]:
        """Like `encode`, of as much of the text as makes `max_tokens` token ids with what the model expects around it.

        Where that alone is more, it is all there is.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        encoding.truncate(max(max_tokens - self._backend.num_special_tokens_to_add(is_pair=False), 0))
        return self._backend.post_process(encoding).ids

    def encode_pair(self, query: str, document: str, max_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """Token ids of both texts with what the model expects around them, and which text each token is of (0, 1).

        With `max_tokens` only so much of the document is taken as leaves no more in all, but at least one token. The
        second list is empty for a model that is not told.
        """
        first, second = (self._backend.encode(text, add_special_tokens=False) for text in (query, document))
        if max_tokens is not None:
            taken = len(first.ids) + self._backend.num_special_tokens_to_add(is_pair=True)
            second.truncate(max(max_tokens - taken, 1))
        pair = self._backend.post_process(first, second)
        return pair.ids, pair.type_ids if self._tells_pairs_apart else []

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; ids without a token give nothing, broken UTF-8 gives U+FFFD."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of one token alone, its leading space included."""
        return self.decoding.token_text(token_id)


def open_tokenizer(checkpoint: Checkpoint, path: str | None = None) -> Tokenizer:
    """The checkpoint's tokenizer, or the one at `path`: a folder, a tokenizer.json or a GGUF file.

    Raises ModelLoadError that names the file or key that is missing or broken.
    """
    location = checkpoint.path if path is None else Path(path)
    if path is None and checkpoint.gguf is not None:
        return _open_gguf(checkpoint.gguf, location)
    if location.suffix == ".gguf" and location.is_file():
        return _open_gguf(GGUFMetadata(location), location)
    file = location / "tokenizer.json" if location.is_dir() else location
    return _open_folder(file, reads_lower_case(checkpoint))


def bad_words_token_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Each word as tokens: as it stands at the start of a text, after a space, and after what ends a word.

    Raises InvalidRequest for a word that has no tokens.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        plain = tokenizer.encode(word, add_special_tokens=False)
        if not plain:
            raise InvalidRequest("bad_words", word, "words that the tokenizer can write")
        spaced = tokenizer.encode(" " + word, add_special_tokens=False)
        found |= dict.fromkeys(map(tuple, (plain, spaced, _behind_newline(tokenizer, word) or plain)))
    return [list(ids) for ids in found]


def _behind_newline(tokenizer: Tokenizer, word: str) -> list[int]:
    """The bare word, for tokenizers that put a space before every text; empty if it merges with a newline."""
    newline = tokenizer.encode("\n", add_special_tokens=False)
    both = tokenizer.encode("\n" + word, add_special_tokens=False)
    return both[len(newline) :] if both[: len(newline)] == newline else []


def _open_gguf(metadata: Mapping[str, Any], file: Path) -> Tokenizer:
    try:
        backend, special_tokens = build_from_gguf(metadata)
    except ModelLoadError as error:
        raise ModelLoadError(f"{file}: {error}") from None
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(backend, special_tokens, template if isinstance(template, str) else None)


def _open_folder(file: Path, lower_case: bool) -> Tokenizer:
    if not file.is_file():
        raise ModelLoadError(f"{file} is missing: a tokenizer is read from tokenizer.json or from a GGUF file")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # The library has no error type of its own: whatever it raises is about this file.
        raise ModelLoadError(f"{file} is not a tokenizer: {error}") from None
    config = _read_if_there(file.parent / "tokenizer_config.json")
    if config.get("tokenizer_class") in _BERTS and isinstance(backend.normalizer, BertNormalizer):
        backend.normalizer = _berts_normalizer(config, file.parent / "tokenizer_config.json")
    if lower_case:
        _lower_case(backend)
    special_tokens = {name: text for name in _NAMED_TOKENS if (text := _token_content(config.get(name))) is not None}
    _add_tokens(backend, config, special_tokens)
    inputs = config.get("model_input_names")
    tells_pairs_apart = config.get("tokenizer_class") not in _TELL_NOTHING
    if isinstance(inputs, list):
        tells_pairs_apart = "token_type_ids" in inputs
    return Tokenizer(backend, special_tokens, _chat_template(file.parent, config), tells_pairs_apart)


def _berts_normalizer(config: Mapping[str, Any], file: Path) -> BertNormalizer:
    """As transformers' class for BERTs has it, which goes by this file whatever tokenizer.json says."""
    flags = {"tokenize_chinese_chars": True, "strip_accents": None, "do_lower_case": True}
    for key, usual in flags.items():
        flags[key] = config.get(key, usual)
        if not isinstance(flags[key], bool) and flags[key] is not usual:
            raise ModelLoadError(f"{file}: {key} is {shorten(flags[key])}; expected true or false")
    chinese, accents, lower_case = flags.values()
    return BertNormalizer(handle_chinese_chars=bool(chinese), strip_accents=accents, lowercase=bool(lower_case))


def _lower_case(backend: Backend) -> None:
    """Texts lose their capitals before anything else is done to them."""
    normalizer = backend.normalizer
    backend.normalizer = Lowercase() if normalizer is None else Normalizers([Lowercase(), normalizer])


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _token_content(token: object) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _add_tokens(backend: Backend, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Adds what tokenizer_config.json declares and tokenizer.json left out."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing: dict[str, AddedToken] = {}
    declared = config.get("added_tokens_decoder") or {}
    for _, token in sorted(declared.items(), key=lambda item: int(item[0])):
        flags = {k: bool(token[k]) for k in ("special", "lstrip", "rstrip", "normalized", "single_word") if k in token}
        missing[token["content"]] = AddedToken(token["content"], **flags)
    listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    extra = [_token_content(token) for token in listed] if isinstance(listed, list) else []
    for content in [*special_tokens.values(), *extra]:
        # A name for a token that the vocabulary lacks must not make the vocabulary larger than the model.
        if content is not None and backend.token_to_id(content) is not None:
            missing.setdefault(content, AddedToken(content, special=True))
    backend.add_tokens([token for content, token in missing.items() if content not in known])


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template") or _read_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None
