"""Models: ARCHITECTURES names them, load_model makes one from a checkpoint."""

from octavo.models.registry import ARCHITECTURES, load_model, read_model_spec, shape_model

__all__ = ["ARCHITECTURES", "load_model", "read_model_spec", "shape_model"]
