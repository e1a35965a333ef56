"""The models that engine stages run, as their config.json has them, and the engine's settings. Imports nothing."""

from __future__ import annotations

from typing import Any

# Without the names of special tokens.
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
TINY = LLAMA_8B | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 200, "max_position_embeddings": 512,
}  # fmt: skip
# The longest prompt that any stage sends, its output and the requests' number: one engine for all stages.
SETTINGS: dict[str, Any] = {"max_model_len": 36864, "max_num_seqs": 256, "dtype": "bfloat16"}
DRY_SETTINGS: dict[str, Any] = SETTINGS | {
    "max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 120,
}  # fmt: skip
