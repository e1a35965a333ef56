"""Scheduling and KV memory: pure Python, deterministic, no torch."""
