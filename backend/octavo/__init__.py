"""Octavo: an LLM serving engine that plugs into the model servers people already run.

These names are the public interface; importing them loads no torch.
"""

from octavo.async_engine import AsyncEngine
from octavo.checkpoint import default_model
from octavo.config import EngineConfig
from octavo.errors import (
    DeadlineExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    ModelLoadError,
    OctavoError,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
    RequestError,
    RequestFailed,
)
from octavo.llm import LLM
from octavo.metrics import METRICS, HistogramMetric, Metric, MetricKind
from octavo.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput, Timing, Usage
from octavo.parsing import parse_bool, parse_int, parse_json
from octavo.pooling_params import PoolingParams, cosine_similarity
from octavo.prompt import ChatPrompt, TextPair
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams
from octavo.stats import EngineStats, Histogram
from octavo.text.chat_format import ChatFormat
from octavo.text.message_part import MessagePart, PartKind
from octavo.text.message_reader import MessageReader

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "METRICS",
    "AsyncEngine",
    "ChatFormat",
    "ChatPrompt",
    "CompletionOutput",
    "DeadlineExceeded",
    "EngineConfig",
    "EngineDead",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "Histogram",
    "HistogramMetric",
    "InvalidRequest",
    "Logprob",
    "MessagePart",
    "MessageReader",
    "Metric",
    "MetricKind",
    "ModelLoadError",
    "OctavoError",
    "Overloaded",
    "PartKind",
    "PoolingParams",
    "PromptTooLong",
    "RequestCancelled",
    "RequestError",
    "RequestFailed",
    "RequestOutput",
    "RequestStream",
    "SamplingParams",
    "TextPair",
    "Timing",
    "Usage",
    "cosine_similarity",
    "default_model",
    "parse_bool",
    "parse_int",
    "parse_json",
]
