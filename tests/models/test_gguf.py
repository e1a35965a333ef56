import gguf
import pytest
import torch
from bench.peer import load_llama
from models.driver import Driver, random_tokens

from octavo.checkpoint import default_model, open_checkpoint
from octavo.errors import ModelLoadError
from octavo.models import load_model

pytestmark = pytest.mark.slow

TOP_LEVEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    stem, _, kind = name.rpartition(".")
    if stem in TOP_LEVEL:
        return f"{TOP_LEVEL[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{IN_LAYER[rest]}.{kind}"


def interleaved(tensor, num_heads):
    """The order of rows that the llama architecture has in GGUF: the two halves of a head alternate."""
    return tensor.reshape(num_heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def write_gguf(model, architecture, file, rope_factors=None, kind=gguf.GGMLQuantizationType.F32, more=None):
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    if more is not None:
        more(writer)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if architecture == "llama" and name.split(".")[-2] in heads:
            tensor = interleaved(tensor, heads[name.split(".")[-2]])
        stored = kind if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(tensor.numpy(), stored)
        writer.add_tensor(gguf_name(name), data, raw_dtype=stored)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "architecture"), [("llama", "llama"), ("llama_mha", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")]
)
def test_a_gguf_file_equals_the_folder_it_was_made_from(name, architecture, tiny, load, tmp_path):
    folder, reference = tiny(name)
    write_gguf(reference, architecture, tmp_path / "tiny.gguf")
    tokens = random_tokens(40)
    wanted = Driver(load(folder)).run("a", tokens, 40)
    assert torch.equal(Driver(load(tmp_path / "tiny.gguf")).run("a", tokens, 40), wanted)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_stored_types_are_read_to_their_precision(kind, tiny, load, tmp_path):
    folder, reference = tiny("llama")
    write_gguf(reference, "llama", tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType[kind])
    got, wanted = (load(path).embedding.table for path in (tmp_path / "tiny.gguf", folder))
    torch.testing.assert_close(got, wanted, rtol=0, atol={"F16": 1e-3, "BF16": 4e-3, "Q8_0": 1e-2, "Q4_0": 0.15}[kind])


def test_frequency_factors_of_the_file_are_used(tiny, load, tmp_path):
    _, reference = tiny("llama3_rope")
    folder, _ = tiny("llama3_rope")
    frequencies = reference.model.rotary_emb.inv_freq
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    write_gguf(reference, "llama", tmp_path / "tiny.gguf", rope_factors=plain / frequencies)
    tokens = random_tokens(200)
    got, wanted = (Driver(load(path)).run("a", tokens, 200) for path in (tmp_path / "tiny.gguf", folder))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)


def test_an_unknown_tensor_is_named(tiny, load, tmp_path):
    _, reference = tiny("qwen2")
    write_gguf(reference, "llama", tmp_path / "tiny.gguf")
    with pytest.raises(ModelLoadError, match=r"self_attn\..*_proj\.bias"):
        load(tmp_path / "tiny.gguf")


def test_a_file_whose_tokens_see_those_behind_them_is_refused(tiny, tmp_path):
    _, reference = tiny("qwen3")
    for name, causal in (("a", True), ("b", False)):
        write_gguf(
            reference, "qwen3", tmp_path / name, more=lambda writer, causal=causal: writer.add_causal_attention(causal)
        )
    assert not open_checkpoint(tmp_path / "a").is_encoder
    with pytest.raises(ModelLoadError, match=r"qwen3\.attention\.causal false is not supported"):
        open_checkpoint(tmp_path / "b")


def test_a_file_says_how_its_vectors_are_made(tiny, tmp_path):
    _, reference = tiny("qwen3")
    write_gguf(reference, "qwen3", tmp_path / "none")
    write_gguf(
        reference, "qwen3", tmp_path / "last", more=lambda writer: writer.add_pooling_type(gguf.PoolingType.LAST)
    )
    assert open_checkpoint(tmp_path / "none").gguf_pooling_type == 0
    assert open_checkpoint(tmp_path / "last").gguf_pooling_type == gguf.PoolingType.LAST


def test_the_default_model_equals_transformers_on_the_dequantised_weights(load):
    checkpoint = open_checkpoint(default_model())
    reference = load_llama(None, torch.float32)
    tokens = random_tokens(40)
    with torch.inference_mode():
        wanted = reference(torch.tensor([tokens])).logits[0]
    model = load_model(checkpoint, torch.float32, torch.device("cpu"), lambda phase, fraction: None)
    got = Driver(model).run("a", tokens, 13)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)
