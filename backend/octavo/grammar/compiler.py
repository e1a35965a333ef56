"""From what a client asked for to a matcher of llguidance, or the reason why not, in words for the client.

Nothing unsupported is ever left out of a grammar without a word. Knows no process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from octavo.grammar.structural_tag import lark_of_structural_tag, strict_schema
from octavo.structured_outputs import StructuredOutputs, of_part
from octavo.vocabulary import Vocabulary

# Tokens are never forced upon the model: whichever way it writes what must come is as good.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Where llguidance begins to quote the grammar.
_QUOTED = re.compile(r"\n\s*\d+ \| ")
_UNSUPPORTED = re.compile(r"Unimplemented keys: (\[.*\])")
_LONGEST_REASON = 300
_WARM_UP = StructuredOutputs("json_object", "")


class UnusableGrammar(ValueError):
    """What was asked for cannot be compiled; the text says what is expected instead, and why."""


class Compiler:
    """Compiles grammars for one vocabulary. Owns llguidance's view of it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokenizer = LLTokenizer(_Tokens(vocabulary), slices=LLTokenizer.json_slices())
        # No token ends all texts: this one, one behind the last, stands for those that a request names.
        self.end_token_id = self.tokenizer.eos_token
        self._special_tokens = {
            vocabulary.tokens[token_id].decode("utf-8", "replace"): token_id
            for token_id in vocabulary.special_token_ids
            if vocabulary.tokens[token_id]
        }
        self._limits = LLParserLimits(verbose_errors=False)
        self.warm_up()

    def warm_up(self) -> None:
        """What is computed at first use is computed before somebody waits."""
        self.compile(_WARM_UP).compute_bitmask()

    def compile(self, asked: StructuredOutputs) -> LLMatcher:
        """A matcher at the beginning of a text. Raises UnusableGrammar."""
        try:
            grammar = _grammar(asked, self._special_tokens)
        except MemoryError:
            raise
        except Exception as error:  # Readers of grammars have errors of their own; all are about this one.
            raise UnusableGrammar(_sentence(asked, str(error))) from None
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise UnusableGrammar(_sentence(asked, why(matcher)))
        return matcher

    def try_out(self, asked: StructuredOutputs) -> None:
        """Compiles a grammar and computes its first mask. Raises UnusableGrammar."""
        matcher = self.compile(asked)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise UnusableGrammar(_sentence(asked, why(matcher)))


class _Tokens(TokenizerWrapper):
    """A vocabulary as llguidance wants to see it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id = None  # type: ignore[assignment]  # then it adds one of its own
        self.bos_token_id = None
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_token_ids
        self._ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
        self._longest = max(map(len, vocabulary.tokens), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Some tokens of a text, longest first: what it is asked for only where tokens are forced."""
        data = text.encode() if isinstance(text, str) else text
        found, start = [], 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), start + 1)
            found.append(self._ids.get(data[start:end], 0))
            start = end
        return found


def why(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on, on one line, without the grammar itself."""
    reason = " ".join(_QUOTED.split(matcher.get_error())[0].removesuffix("<non-verbose/>").split())
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "..."


def _grammar(asked: StructuredOutputs, special_tokens: Mapping[str, int]) -> str:
    """In llguidance's Lark. Raises ValueError."""
    if asked.kind == "regex":
        made: str = json.loads(LLMatcher.grammar_from_regex(asked.text))["grammars"][0]["lark_grammar"]
    elif asked.kind == "choice":
        # One terminal: of alternatives in a rule a parser follows each by itself.
        choices = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(asked.text)]
        made = "start: CHOICE\nCHOICE: " + " | ".join(choices)
    elif asked.kind == "grammar":
        made = any_to_lark(asked.text)
    elif asked.kind == "structural_tag":
        made = lark_of_structural_tag(json.loads(asked.text), special_tokens)
    else:
        schema = json.loads(asked.text) if asked.text else {"type": "object"}
        made = "start: %json " + json.dumps(strict_schema(schema))
    return LLMatcher.grammar_from_lark(made + _OPTIONS)


_NOUNS = {
    "json": "a JSON schema",
    "json_object": "a JSON object",
    "regex": "a regular expression",
    "choice": "choices",
    "grammar": "a grammar (Lark or GBNF)",
    "structural_tag": "a structural tag",
}
# Made of the parameters of tools.
_NOUN_OF_MADE = "JSON schemas"
# Where in a grammar it is, which clients do not know who did not write it.
_PLACE = re.compile(r"at (\d+)\(\d+\): (failed to compile JSON schema: )?")
_SCHEMA_RULE = re.compile(r"\w+: %json ")


def _sentence(asked: StructuredOutputs, reason: str) -> str:
    """What is expected, and why what came is not it."""
    place = _PLACE.match(reason) if asked.parts else None
    lines = [] if place is None else asked.text.split("\n")[: int(place[1])]
    numbers = [i for i, line in enumerate(lines, 1) if _SCHEMA_RULE.match(line)]
    if place is None or numbers[-1:] != [len(lines)]:
        return _expected(_NOUN_OF_MADE if asked.shown else _NOUNS[asked.kind], reason)
    return of_part(len(numbers) - 1, _expected(_NOUNS["json"], reason[place.end() :]))


def _expected(noun: str, reason: str) -> str:
    unsupported = _UNSUPPORTED.search(reason)
    if unsupported is not None:
        keys = ", ".join(json.loads(unsupported[1]))
        return f"{noun} without these keywords, which are not supported: {keys}"
    return f"{noun} that can be followed ({reason[:_LONGEST_REASON]})"
