"""Grammars: which tokens a text may go on with. Compiled and followed by processes of their own, see `worker`."""
