"""Tiny random models of every supported family, written by transformers, with biases and norms that matter."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_BASE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}

TINY_MODELS = {
    "llama": ("llama", {}),
    "llama3_rope": ("llama", {"rope_parameters": _LLAMA3, "max_position_embeddings": 1024}),
    "llama_yarn": ("llama", {"rope_parameters": _YARN}),
    "llama_yarn_mscale": (
        "llama",
        {"rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 8.0}},
    ),
    "llama_yarn_exact": (
        "llama",
        {"rope_parameters": {**_YARN, "truncate": False, "attention_factor": 1.3, "beta_slow": 2.0}},
    ),
    "llama_linear": ("llama", {"rope_parameters": _LINEAR}),
    "llama_tied_bias": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama_mha": ("llama", {"num_key_value_heads": 4, "head_dim": 24}),
    "mistral_swa": ("mistral", {"sliding_window": 16}),
    "mistral_full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2_swa": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_swa": (
        "qwen3",
        {
            "head_dim": 32,
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def make_tiny_model(name, folder):
    """Writes model `name` to `folder`; returns the transformers model in fp32, as it is on disk."""
    kind, settings = TINY_MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_BASE, **settings}), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model.eval()
