"""Models: ARCHITECTURES names them, load_model makes one from a checkpoint."""

from octavo.models.model import Model, ModelSpec
from octavo.models.registry import ARCHITECTURES, load_model, read_model_spec, shape_model

__all__ = ["ARCHITECTURES", "Model", "ModelSpec", "load_model", "read_model_spec", "shape_model"]
