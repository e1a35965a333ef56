"""The Triton server host: Octavo as a Python-based backend, and a launcher of that server.

Imports nothing of Octavo but `octavo`'s public names.
"""
