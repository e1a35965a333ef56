import json

import pytest
import torch
from models.driver import Driver, random_tokens
from safetensors.torch import load_file, save_file

from octavo.checkpoint import open_checkpoint
from octavo.errors import ModelLoadError
from octavo.models import ARCHITECTURES, load_model, read_model_spec

pytestmark = pytest.mark.slow

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def copied(tiny, tmp_path):
    """name -> (a folder that may be spoilt, its tensors)"""

    def copy(name="llama"):
        folder, _ = tiny(name)
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return tmp_path, load_file(folder / "model.safetensors")

    return copy


def save_shards(folder, tensors, shards):
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_shards_load_like_one_file(copied, tiny, load):
    folder, tensors = copied()
    names = sorted(tensors)
    save_shards(folder, tensors, [names[::3], names[1::3], names[2::3]])
    tokens = random_tokens(20)
    wanted = Driver(load(tiny("llama")[0])).run("a", tokens, 20)
    assert torch.equal(Driver(load(folder)).run("a", tokens, 20), wanted)


def test_the_body_alone_loads_as_in_a_whole_model(copied, tiny, load):
    name = "llama_tied_bias"
    folder, tensors = copied(name)
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    tokens = random_tokens(20)
    wanted = Driver(load(tiny(name)[0])).run("a", tokens, 20)
    assert torch.equal(Driver(load(folder)).run("a", tokens, 20), wanted)
    # Of a model that never had a last layer the config may say anything.
    change_config(folder, architectures=["LlamaModel"], tie_word_embeddings=False)
    assert torch.equal(Driver(load(folder)).run("a", tokens, 20), wanted)


def test_a_missing_shard_is_named(copied, load):
    folder, tensors = copied()
    names = sorted(tensors)
    save_shards(folder, tensors, [names[::2], names[1::2]])
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model-1\.safetensors"):
        load(folder)


def test_a_missing_tensor_is_named(copied, load):
    folder, tensors = copied()
    del tensors[DOWN]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=DOWN):
        load(folder)


def test_an_unexpected_tensor_is_named(copied, load):
    folder, tensors = copied()
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.layers\.0\.self_attn\.q_proj\.bias"):
        load(folder)


def test_a_wrong_shape_is_named_with_both_shapes(copied, load):
    folder, tensors = copied()
    tensors[DOWN] = tensors[DOWN][:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=DOWN + r".*\[64, 127\].*\[64, 128\]"):
        load(folder)


@pytest.mark.parametrize("kept", [5, 300, -100])
def test_a_truncated_file_is_named(copied, load, kept):
    folder, tensors = copied()
    file = folder / "model.safetensors"
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        load(folder)


def test_quantised_weights_are_refused(copied, load):
    folder, tensors = copied()
    tensors[DOWN] = tensors[DOWN].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=DOWN):
        load(folder)
    change_config(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(ModelLoadError, match="quantization_config"):
        load(folder)


def test_derived_tensors_in_old_checkpoints_are_ignored(copied, load):
    folder, tensors = copied("llama_tied_bias")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).spec.tied_embeddings


def test_an_unknown_architecture_lists_the_known(copied, load):
    folder, tensors = copied()
    save_file(tensors, folder / "model.safetensors")
    change_config(folder, architectures=["MambaForCausalLM"])
    with pytest.raises(ModelLoadError, match="MambaForCausalLM.*" + ".*".join(ARCHITECTURES)):
        load(folder)


def test_progress_rises_to_one(tiny):
    seen = []
    checkpoint = open_checkpoint(tiny("llama")[0])
    load_model(checkpoint, torch.float32, torch.device("cpu"), lambda phase, fraction: seen.append((phase, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert {phase for phase, _ in seen} == {"loading weights"}
    assert fractions == sorted(fractions)
    assert len(fractions) > 10
    assert fractions[-1] == 1.0


def test_the_spec_is_known_without_weights(tiny):
    spec = read_model_spec(open_checkpoint(tiny("qwen3_swa")[0]))
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (2, 2, 32, 512)
    assert spec.sliding_windows == (16, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_load_in_the_type_asked_for(tiny, load, dtype):
    model = load(tiny("llama")[0], dtype)
    logits = Driver(model, dtype).run("a", random_tokens(20), 20)
    assert model.embedding.table.dtype == dtype
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
