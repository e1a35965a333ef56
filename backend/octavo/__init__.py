"""Octavo: an LLM serving engine that plugs into the model servers people already run.

These names are the public interface; importing them loads no torch.
"""

from octavo.errors import InvalidRequest
from octavo.sampling_params import SamplingParams

__all__ = ["InvalidRequest", "SamplingParams"]
