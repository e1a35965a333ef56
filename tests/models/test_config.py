from pathlib import Path

import pytest
import torch

from octavo.checkpoint import Checkpoint
from octavo.errors import ModelLoadError
from octavo.layers.rope import RopeSpec, rope_table
from octavo.models.bert import BertModel
from octavo.models.config import layer_windows, read_spec
from octavo.models.llama import LlamaForCausalLM
from octavo.models.mistral import MistralForCausalLM
from octavo.models.qwen2 import Qwen2ForCausalLM
from octavo.models.qwen3 import Qwen3ForCausalLM
from octavo.models.registry import read_model_spec
from octavo.models.roberta import RobertaModel

CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def test_what_a_config_leaves_out_has_its_usual_value():
    spec = read_spec(CONFIG)
    assert (spec.num_kv_heads, spec.head_dim, spec.num_layers) == (4, 16, 3)
    assert spec.rope == RopeSpec()
    assert spec.sliding_windows == (None, None, None)
    assert not (spec.tied_embeddings or spec.qkv_bias or spec.output_bias or spec.mlp_bias or spec.qk_norm)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 128}},
        ),
    ],
)
def test_old_and_new_spellings_of_rope_are_the_same(old, new):
    assert read_spec(CONFIG | old) == read_spec(CONFIG | new)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": [1]}, "rope_parameters"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"intermediate_size": 1.5}, "intermediate_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 20}, "head_dim 20"),
        ({"head_dim": 264}, "head_dim 264"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"is_causal": False}, "is_causal False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_by_key(change, named):
    with pytest.raises(ModelLoadError, match=named):
        read_spec(CONFIG | change)


@pytest.mark.parametrize("said", [{"is_causal": True}, {"is_causal": None, "use_bidirectional_attention": False}])
def test_a_config_may_say_that_a_decoder_is_one(said):
    assert read_spec(CONFIG | said) == read_spec(CONFIG)


@pytest.mark.parametrize("family", [LlamaForCausalLM, BertModel, RobertaModel])
@pytest.mark.parametrize("said", [{}, {"max_position_embeddings": 514}])
def test_the_context_is_as_long_for_the_model_as_for_its_checkpoint(family, said):
    config = {key: value for key, value in CONFIG.items() if key != "max_position_embeddings"} | said
    config["architectures"] = [family.__name__]
    checkpoint = Checkpoint(Path(), config, {}, ())
    assert checkpoint.max_position_embeddings == family.read_spec(config).max_position_embeddings


def test_the_first_of_several_architectures_counts():
    names = ["BertModel", "BertForSequenceClassification"]
    for first, is_cross_encoder in zip(names, (False, True), strict=True):
        config = CONFIG | {"architectures": sorted(names, key=first.__ne__), "id2label": {"0": "score"}}
        checkpoint = Checkpoint(Path(), config, {}, ())
        assert checkpoint.is_cross_encoder == is_cross_encoder
        assert bool(read_model_spec(checkpoint).head) == is_cross_encoder


@pytest.mark.parametrize(
    ("said", "message"), [({"pad_token_id": 511}, "leaves no position"), ({"pad_token_id": "1"}, "pad_token_id is '1'")]
)
def test_a_context_of_nothing_is_refused(said, message):
    checkpoint = Checkpoint(Path(), CONFIG | {"architectures": ["RobertaModel"]} | said, {}, ())
    with pytest.raises(ModelLoadError, match=message):
        _ = checkpoint.max_position_embeddings


def test_mistral_slides_in_every_layer():
    assert MistralForCausalLM.read_spec(CONFIG | {"sliding_window": 7}).sliding_windows == (7, 7, 7)
    assert MistralForCausalLM.read_spec(CONFIG | {"sliding_window": None}).sliding_windows == (None,) * 3


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({"sliding_window": 7}, (None, None, None)),
        ({"sliding_window": 7, "use_sliding_window": True}, (None, None, None)),
        ({"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}, (None, 7, 7)),
        ({"sliding_window": None, "use_sliding_window": True, "max_window_layers": 1}, (None, None, None)),
        (
            {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (7, None, 7),
        ),
    ],
)
def test_qwen_slides_only_where_its_config_says(keys, windows):
    assert layer_windows(CONFIG | keys) == windows


def test_unknown_layer_types_are_refused():
    keys = {"sliding_window": 7, "use_sliding_window": True, "layer_types": ["linear_attention"] * 3}
    with pytest.raises(ModelLoadError, match="layer_types"):
        layer_windows(CONFIG | keys)


def test_biases_belong_to_the_family():
    qwen2 = Qwen2ForCausalLM.read_spec(CONFIG)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = Qwen3ForCausalLM.read_spec(CONFIG | {"head_dim": None})
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    assert not MistralForCausalLM.read_spec(CONFIG | {"sliding_window": None, "attention_bias": True}).qkv_bias


def test_frequency_factors_divide_the_frequencies():
    plain, divided = rope_table(RopeSpec(), 4, 9), rope_table(RopeSpec(frequency_factors=(1.0, 4.0)), 4, 9)
    assert torch.equal(plain[:, :, 0], divided[:, :, 0])
    torch.testing.assert_close(divided[8, :, 1], plain[2, :, 1])
