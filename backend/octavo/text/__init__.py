"""Text at both ends of the engine: tokenizers, chat templates, and incremental detokenisation with stop strings.

Knows token ids and characters; knows no model, no scheduler, no stream and no host.
"""
