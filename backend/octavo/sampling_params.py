"""SamplingParams: how one request wants its tokens chosen, and the one parser of it for every host.

The exact meaning of each field is the sampling contract; README has the table. Knows no tokenizer and no
device: what needs the vocabulary (token ids in range, bad words as tokens) is checked at submit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from octavo.errors import InvalidRequest
from octavo.parsing import (
    parse_bool,
    parse_float,
    parse_int,
    parse_json,
    parse_list,
    parse_mapping,
    parse_texts,
)
from octavo.structured_outputs import (
    STRUCTURED_OUTPUT_NAMES,
    StructuredOutputs,
    parse_structured_outputs,
    read_structured_outputs,
)

GREEDY_BELOW = 1e-5
LOWEST_TEMPERATURE = 0.01
_INT32_MAX = 2**31 - 1
_MAX_TOKEN_LIST = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of one request. Field names and defaults follow vLLM's.

    Raises InvalidRequest, naming the field, for a value outside its range. `max_tokens=None` means the rest of the
    context; `seed=None` means that the engine draws one. Token counts are in tokens, penalties are factors or
    logit offsets.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name, parse in _PARSERS.items():
            value = getattr(self, name)
            if value is not None:
                # The one place where a frozen field is set: while the object is being made.
                object.__setattr__(self, name, parse(name, value))
            elif name not in _NULLABLE:
                object.__setattr__(self, name, _default(name))
        self._check_together()

    def _check_together(self) -> None:
        if self.greedy and self.n > 1:
            raise InvalidRequest("n", self.n, "1 when temperature is 0 (greedy children would all be the same)")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], **defaults: object) -> SamplingParams:
        """Reads what a client sent.

        Numbers and booleans may be strings, null means the default, keys that start with "_" are ignored; so are
        parameters of vLLM's that ask for nothing. `defaults` stand in for what is absent or null. Raises
        InvalidRequest for an unknown key, naming it.
        """
        known = defaults
        mapping = parse_mapping("sampling_parameters", mapping)
        for name, value in mapping.items():
            if name.startswith("_") or (value is None and name in cls.parameter_names()):
                continue
            if name in _WITHOUT_EFFECT:
                _check_without_effect(name, value)
            elif name in STRUCTURED_OUTPUT_NAMES:
                known["structured_outputs"] = read_structured_outputs(mapping)
            elif name not in _PARSERS:
                raise InvalidRequest("sampling_parameters", name, "one of " + ", ".join(sorted(_PARSERS)))
            else:
                known[name] = value
        return cls(**known)  # type: ignore[arg-type]  # each value is parsed by its field's own parser

    @classmethod
    def from_json(cls, name: str, text: str) -> SamplingParams:
        """Reads a JSON object, as clients send it in a string; `name` is what a refusal calls it."""
        return cls.from_mapping(parse_mapping(name, parse_json(name, text)))

    @staticmethod
    def parameter_names() -> frozenset[str]:
        """Every name that `from_mapping` knows, those included that it refuses or that have no effect here."""
        return _KNOWN_NAMES

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without drawing."""
        return self.temperature < GREEDY_BELOW

    def with_max_tokens(self, max_tokens: int) -> SamplingParams:
        """The same, with another limit on the number of output tokens."""
        return replace(self, max_tokens=max_tokens, min_tokens=min(self.min_tokens, max_tokens))


def _default(name: str) -> object:
    f = next(f for f in fields(SamplingParams) if f.name == name)
    return f.default if f.default_factory is MISSING else f.default_factory()


def _temperature(name: str, value: object) -> float:
    temperature = parse_float(name, value, 0, 2)
    # Below 0.01 the scaled logits leave what fp32 can tell apart; that low, a user means "almost greedy".
    return max(temperature, LOWEST_TEMPERATURE) if temperature >= GREEDY_BELOW else temperature


def _top_k(name: str, value: object) -> int:
    return max(parse_int(name, value, -1, _INT32_MAX), 0)


def _top_p(name: str, value: object) -> float:
    top_p = parse_float(name, value, 0, 1)
    if top_p == 0:
        raise InvalidRequest(name, value, "a number above 0 and at most 1")
    return top_p


def _repetition(name: str, value: object) -> float:
    penalty = parse_float(name, value, 0)
    if penalty == 0:
        raise InvalidRequest(name, value, "a number above 0")
    return penalty


def _logit_bias(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(name, value, "an object of token id -> bias from -100 to 100")
    return {_token_id(name, token): parse_float(f"{name}[{token}]", bias, -100, 100) for token, bias in value.items()}


def _token_id(name: str, value: object) -> int:
    return parse_int(name, value, 0, _INT32_MAX)


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    return parse_list(name, value, _token_id, _MAX_TOKEN_LIST)


def _allowed_token_ids(name: str, value: object) -> tuple[int, ...]:
    token_ids = _token_ids(name, value)
    if not token_ids:
        raise InvalidRequest(name, value, "at least one token id")
    return token_ids


def _between(low: int, high: int) -> Callable[[str, object], int]:
    return lambda name, value: parse_int(name, value, low, high)


def _number(low: float, high: float) -> Callable[[str, object], float]:
    return lambda name, value: parse_float(name, value, low, high)


def _texts(limit: int) -> Callable[[str, object], tuple[str, ...]]:
    return lambda name, value: parse_texts(name, value, limit)


def _logprobs(name: str, value: object) -> int | None:
    # The chat API's way to say "none", which OpenAI frontends pass on.
    return None if str(value).lower() == "false" else parse_int(name, value, -1, _INT32_MAX)


def _empty(name: str, value: object) -> tuple[()]:
    if value in ([], {}, (), ""):
        return ()
    raise InvalidRequest(name, value, "null or nothing in it: it is not supported")


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "n": _between(1, 128),
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "min_p": _number(0, 1),
    "repetition_penalty": _repetition,
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "seed": parse_int,
    "max_tokens": _between(1, _INT32_MAX),
    "min_tokens": _between(0, _INT32_MAX),
    "stop": _texts(16),
    "stop_token_ids": _token_ids,
    "include_stop_str_in_output": parse_bool,
    "ignore_eos": parse_bool,
    "logprobs": _logprobs,
    "prompt_logprobs": _between(-1, _INT32_MAX),
    "logit_bias": _logit_bias,
    "allowed_token_ids": _allowed_token_ids,
    "bad_words": _texts(1024),
    "skip_special_tokens": parse_bool,
    "truncate_prompt_tokens": _between(-1, _INT32_MAX),
    "structured_outputs": parse_structured_outputs,
}
# Fields whose None is a value of its own; for all others None means the default.
_NULLABLE = frozenset(
    {
        "seed", "max_tokens", "logprobs", "prompt_logprobs", "allowed_token_ids", "truncate_prompt_tokens",
        "structured_outputs",
    }
)  # fmt: skip


# vLLM's parameters that have no effect here, with the values that ask for nothing: its clients send them all the same.
_WITHOUT_EFFECT: dict[str, tuple[Callable[[str, object], Any], tuple[Any, ...]]] = {
    "best_of": (parse_int, (1,)),
    "use_beam_search": (parse_bool, (False,)),
    "early_stopping": (parse_bool, (False,)),
    "length_penalty": (parse_float, (1.0,)),
    "detokenize": (parse_bool, (True,)),
    "spaces_between_special_tokens": (parse_bool, (True,)),
    "output_text_buffer_length": (parse_int, (0,)),
    # What a response brings is the host's to say, whichever of the three kinds is named.
    "output_kind": (parse_int, (0, 1, 2)),
    "logits_processors": (_empty, ((),)),
    "extra_args": (_empty, ((),)),
}
_KNOWN_NAMES = frozenset({*_PARSERS, *_WITHOUT_EFFECT, *STRUCTURED_OUTPUT_NAMES})


def _check_without_effect(name: str, value: object) -> None:
    parse, harmless = _WITHOUT_EFFECT[name]
    if parse(name, value) not in harmless:
        allowed = " or ".join(str(each) for each in harmless)
        raise InvalidRequest(name, value, f"{allowed}: anything else is not supported")


def child_seed(seed: int, index: int) -> int:
    """The key of child `index` of a request with `seed`: an int64, well mixed, the same wherever it is computed.

    Arithmetic: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") at
    seed + (index + 1) * golden ratio, modulo 2**64, read as signed.
    """
    mask = (1 << 64) - 1
    x = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x
