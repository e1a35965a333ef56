"""All of it: the server's Python backend looks for this class in this file."""

from octavo_triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
