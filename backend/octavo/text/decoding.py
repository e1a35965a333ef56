"""Decoding: token ids in, text out as soon as no later token can change it.

A stream gives, piece by piece, exactly what the tokenizer's own `decode` gives for all its tokens at once, in
constant time a token. Knows nothing of stop strings, nor of which tokens are special.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from codecs import utf_8_decode
from collections.abc import Iterator, Sequence, Set
from functools import cached_property
from itertools import islice
from typing import Any

from tokenizers import Tokenizer as Backend

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# An unfinished UTF-8 character is at most three bytes long.
_LONGEST_UNFINISHED = 3
# How far the windowed stream looks back, and how long it waits for a character to be completed, in tokens.
_WINDOW = 8


class TextStream(ABC):
    """One sequence's text. Owns what has been pushed and not yet given out."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; empty in the middle of a character."""

    @abstractmethod
    def flush(self) -> str:
        """The rest, at the end of the sequence: U+FFFD where a character was left unfinished."""


class Decoding(ABC):
    """How one tokenizer writes its tokens. One per tokenizer, shared by all streams."""

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """The text of one token alone, its leading space included; empty for an id without a token."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text that has begun; empty without a token, or where its neighbours decide."""

    @abstractmethod
    def stream(self, prompt_token_ids: Sequence[int], skipped: Set[int]) -> TextStream:
        """A stream that goes on after the prompt without its `skipped` tokens, which are never pushed either."""


def open_decoding(backend: Backend) -> Decoding:
    """Chooses by the kind of `backend`'s decoder; any kind not known in detail is decoded through a window."""
    steps = _decoder_steps(backend)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelDecoding(backend)
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        strip = steps[3] if len(steps) == 4 else {"content": " ", "start": 0, "stop": 0}
        old = steps[0]["pattern"].get("String")
        if old and strip["content"] == " " and strip["start"] in (0, 1) and strip["stop"] == 0:
            return ByteFallbackDecoding(backend, old, steps[0]["content"], bool(strip["start"]))
    return WindowDecoding(backend)


def _backwards(token_ids: Sequence[int], skipped: Set[int]) -> Iterator[int]:
    """From the last one to the first: streams look at the end of a prompt only, however long it is."""
    return (token_id for token_id in reversed(token_ids) if token_id not in skipped)


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    described: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = described["decoders"] if described["type"] == "Sequence" else [described]
    return steps


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies -> the byte.

    Bytes that print stand for themselves, the other 68 are numbered from U+0100 on (GPT-2's table).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class ByteLevelDecoding(Decoding):
    """Tokens are bytes; the text is their UTF-8, each maximal invalid part of it one U+FFFD."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        # Only tokens that are whole characters: they need no decoding when nothing is pending.
        self.whole: dict[int, str] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the byte stream. A token with a character outside the alphabet stands for itself."""
        data = self._bytes.get(token_id)
        if data is None:
            token = self._backend.id_to_token(token_id) or ""
            try:
                data = bytes(_BYTE_OF[character] for character in token)
            except KeyError:
                data = token.encode()
            self._bytes[token_id] = data
            text, used = utf_8_decode(data, "replace", False)
            if used == len(data) and text.encode() == data:
                self.whole[token_id] = text
        return data

    def token_text(self, token_id: int) -> str:
        """Its bytes alone, U+FFFD where they are no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def stream(self, prompt_token_ids: Sequence[int], skipped: Set[int]) -> TextStream:
        """Starts inside a character where the prompt ends in one."""
        tail = b""
        for token_id in _backwards(prompt_token_ids, skipped):
            tail = self.token_bytes(token_id) + tail
            if len(tail) >= _LONGEST_UNFINISHED:
                break
        _, used = utf_8_decode(tail, "replace", False)
        unfinished = tail[used:]
        # Python also waits behind half a surrogate, which is broken already: two U+FFFD, both the prompt's.
        return _ByteLevelStream(self, unfinished if len(unfinished.decode("utf-8", "replace")) == 1 else b"")


class _ByteLevelStream(TextStream):
    def __init__(self, decoding: ByteLevelDecoding, pending: bytes) -> None:
        self._decoding = decoding
        self._whole = decoding.whole
        self._pending = pending
        # A character that the prompt began: completed it is ours, broken its U+FFFD is the prompt's.
        self._begun_by_prompt = bool(pending)

    def push(self, token_id: int) -> str:
        if not self._pending:
            text = self._whole.get(token_id)
            if text is not None:
                return text
        return self._decode(self._decoding.token_bytes(token_id), final=False)

    def flush(self) -> str:
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, final: bool) -> str:
        data = self._pending + data
        text, used = utf_8_decode(data, "replace", final)
        self._pending = data[used:]
        if text and self._begun_by_prompt:
            self._begun_by_prompt = False
            return text.removeprefix(REPLACEMENT)
        return text


class ByteFallbackDecoding(Decoding):
    """Tokens are text, but `<0x0A>` is a byte. A run of bytes is valid as a whole, or each of them is one U+FFFD.

    So a run is only certain at its end. With `strip_start` the very first space of a text is dropped.
    """

    def __init__(self, backend: Backend, space: str, content: str, strip_start: bool) -> None:
        self._backend = backend
        self._space, self._content = space, content
        self.strip_start = strip_start
        self._pieces: dict[int, int | str] = {}

    def piece(self, token_id: int) -> int | str:
        """A byte, or text."""
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._backend.id_to_token(token_id) or ""
            byte = _BYTE_TOKEN.fullmatch(token)
            piece = int(byte[1], 16) if byte else token.replace(self._space, self._content)
            self._pieces[token_id] = piece
        return piece

    def token_text(self, token_id: int) -> str:
        """Its text; a byte above 127 alone is U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Its byte, or its text; only at the very beginning of a text is a space dropped."""
        piece = self.piece(token_id)
        return piece.encode() if isinstance(piece, str) else bytes([piece])

    def stream(self, prompt_token_ids: Sequence[int], skipped: Set[int]) -> TextStream:
        """Starts inside a run of bytes where the prompt ends in one."""
        #  prompt:  ... text text <E2> <82> | output: <AC> ...
        #                    ^ nothing before this one matters: it has used up the space that is dropped
        context = []
        for token_id in _backwards(prompt_token_ids, skipped):
            context.append(token_id)
            if isinstance(self.piece(token_id), str) and self.piece(token_id):
                break
        stream = _ByteFallbackStream(self)
        for token_id in reversed(context):
            stream.push(token_id)
        stream.begin_output()
        return stream


class _ByteFallbackStream(TextStream):
    def __init__(self, decoding: ByteFallbackDecoding) -> None:
        self._decoding = decoding
        self._run = bytearray()
        self._strip = decoding.strip_start
        self._num_prompt_bytes = 0

    def begin_output(self) -> None:
        """What has been pushed so far was the prompt's."""
        self._num_prompt_bytes = len(self._run)
        if self._run:
            self._strip = False

    def push(self, token_id: int) -> str:
        piece = self._decoding.piece(token_id)
        if isinstance(piece, int):
            self._run.append(piece)
            return ""
        text = self._end_run() + piece if self._run and piece else piece
        return self._stripped(text) if self._strip else text

    def flush(self) -> str:
        text = self._end_run()
        return self._stripped(text) if self._strip else text

    def _end_run(self) -> str:
        run, num_prompt_bytes = bytes(self._run), self._num_prompt_bytes
        self._run.clear()
        self._num_prompt_bytes = 0
        try:
            text = run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * (len(run) - num_prompt_bytes)
        return text[len(run[:num_prompt_bytes].decode("utf-8", "ignore")) :]

    def _stripped(self, text: str) -> str:
        if text:
            self._strip = False
        return text.removeprefix(" ")


class WindowDecoding(Decoding):
    """Any other decoder: each token is decoded with a few before it, and their text is cut off.

    Exact where the text of a token depends on its neighbours only; a character may take up to eight tokens.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def has_token(self, token_id: int) -> bool:
        """Whether there is a token of this id; the others are not even a neighbour."""
        return self._backend.id_to_token(token_id) is not None

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens alone."""
        return self._backend.decode(token_ids, skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """What the decoder makes of it alone; some drop its leading space."""
        return self.decode([token_id])

    def token_bytes(self, token_id: int) -> bytes:
        """What is new where it comes after another one; empty where it is no whole character."""
        anchor = self.decode(self._anchor)
        text = self.decode([*self._anchor, token_id])
        is_whole = text.startswith(anchor) and REPLACEMENT not in text
        return text[len(anchor) :].encode() if is_whole else b""

    @cached_property
    def _anchor(self) -> list[int]:
        """An ordinary token, for another to stand behind."""
        ids = range(self._backend.get_vocab_size(with_added_tokens=False))
        return [next((token_id for token_id in ids if self.decode([token_id]).isalpha()), 0)]

    def stream(self, prompt_token_ids: Sequence[int], skipped: Set[int]) -> TextStream:
        """Starts with the prompt's last tokens as context."""
        context = islice(filter(self.has_token, _backwards(prompt_token_ids, skipped)), _WINDOW)
        return _WindowStream(self, list(context)[::-1])


class _WindowStream(TextStream):
    #  ids:   context | waiting | new token
    #         given   |    ... the rest of the text, once it ends in a whole character
    def __init__(self, decoding: WindowDecoding, context: list[int]) -> None:
        self._decoding = decoding
        self._ids = context
        self._num_context = len(context)
        self._given = decoding.decode(context)

    def push(self, token_id: int) -> str:
        if not self._decoding.has_token(token_id):
            return ""
        self._ids.append(token_id)
        text = self._decoding.decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) - self._num_context < _WINDOW:
            return ""
        new = text[len(self._given) :]
        self._ids = self._ids[self._num_context :]
        self._num_context = len(self._ids)
        self._given = self._decoding.decode(self._ids)
        return new

    def flush(self) -> str:
        return self._decoding.decode(self._ids)[len(self._given) :]
