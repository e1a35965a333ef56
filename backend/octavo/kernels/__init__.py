"""Numeric operations. One file an operation: wrapper, PyTorch reference, and a faster kernel where one exists.

Knows tensors only: nothing of models, requests or configuration.
"""
