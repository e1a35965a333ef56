"""What the Triton server finds as <backends>/octavo/model.py; everything is in the octavo_triton package."""

from octavo_triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
