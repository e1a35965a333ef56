"""The inputs and outputs of a model on the v2 protocol: the contract's two tables. Knows no value of any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of the model: its name, Triton type and dims; outputs are never optional."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False

    def as_config(self) -> dict[str, object]:
        """The entry of a model configuration."""
        entry: dict[str, object] = {"name": self.name, "data_type": self.data_type, "dims": list(self.dims)}
        return entry | {"optional": True} if self.optional else entry


TEXT_OUTPUT = "text_output"

# -1 stands for n, the number of sequences, except where the comment says otherwise.
OUTPUTS = (
    TensorSpec(TEXT_OUTPUT, "TYPE_STRING", (-1,)),
    TensorSpec("finish_reason", "TYPE_STRING", (-1,)),
    TensorSpec("cumulative_logprob", "TYPE_FP32", (-1,)),
    TensorSpec("logprobs", "TYPE_STRING", (-1,)),
    TensorSpec("num_input_tokens", "TYPE_UINT32", (1,)),
    TensorSpec("num_output_tokens", "TYPE_UINT32", (-1,)),
    TensorSpec("token_ids", "TYPE_STRING", (-1,)),
    TensorSpec("timing", "TYPE_STRING", (1,)),
)
# The input that asks for an output -> the output. The text comes without asking.
RETURN_FLAGS = {f"return_{spec.name}": spec.name for spec in OUTPUTS if spec.name != TEXT_OUTPUT}

INPUTS = (
    TensorSpec("text_input", "TYPE_STRING", (1,)),
    TensorSpec("stream", "TYPE_BOOL", (1,), optional=True),
    TensorSpec("sampling_parameters", "TYPE_STRING", (1,), optional=True),
    TensorSpec("exclude_input_in_output", "TYPE_BOOL", (1,), optional=True),
    *(TensorSpec(name, "TYPE_BOOL", (1,), optional=True) for name in RETURN_FLAGS),
    # As many as the client likes.
    TensorSpec("image", "TYPE_STRING", (-1,), optional=True),
    TensorSpec("embedding_request", "TYPE_STRING", (1,), optional=True),
    TensorSpec("messages", "TYPE_STRING", (1,), optional=True),
    TensorSpec("tools", "TYPE_STRING", (1,), optional=True),
    TensorSpec("response_format", "TYPE_STRING", (1,), optional=True),
)
