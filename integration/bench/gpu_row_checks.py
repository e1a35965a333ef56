"""Stages 1b and 1c: row-wise kernels against their references, the sampler against the CPU's, on the device.

And bit for bit against themselves: a row alone and among others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import product

import numpy as np
import torch
from gpu_checks import BF16, DTYPES, FP8, FP16, FP32, close, equal, name_of
from gpu_timing import Bench, Row
from kernels.device_sampling import asked_by, sample_on_cpu
from kernels.paged import metadata_of
from runner.reference_sampler import Case
from torch import Tensor

from octavo.kernels.embedding import embedding_gpu, embedding_reference
from octavo.kernels.kv_layout import read_blocks
from octavo.kernels.quantise_rows import quantise_rows_reference
from octavo.kernels.rms_norm import rms_norm_fp8_gpu, rms_norm_gpu, rms_norm_reference
from octavo.kernels.rope_kv_write import HeadNorm, WriteForm, rope_kv_write_fp8, rope_kv_write_reference
from octavo.kernels.rope_kv_write_gpu import rope_kv_write_gpu
from octavo.kernels.sampling import Sampled, SamplingScratch, sample
from octavo.kernels.sampling_tables import SamplingTables
from octavo.kernels.silu_and_mul import silu_and_mul_gpu, silu_and_mul_reference
from octavo.sampling_params import SamplingParams

SIZES = ((1, 1), (1, 576), (5, 17), (17, 1000), (63, 4096), (3, 16384))
LIMITS = {
    BF16: {"atol": 1e-2, "rtol": 1e-2},
    FP16: {"atol": 2e-3, "rtol": 2e-3},
    FP32: {"atol": 4e-6, "rtol": 1e-5},
    # One step of e4m3, and its smallest number but zero.
    FP8: {"atol": 2**-9, "rtol": 2**-3},
}
VOCAB_SIZES = (12, 257, 9001, 32000, 128256)
ASKED = (
    {"temperature": 0.0},
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.9},
    {"top_p": 0.2, "temperature": 1.8},
    {"min_p": 0.05},
    {"top_k": 9, "top_p": 0.8, "min_p": 0.01, "temperature": 0.7},
    {"allowed_token_ids": (1, 3, 5, 8)},
    {"logit_bias": {0: 2.5, 4: -100.0, 9: 1.0}, "top_k": 5},
    {"repetition_penalty": 1.7, "top_p": 0.9},
    {"frequency_penalty": 0.9, "presence_penalty": 0.4, "temperature": 0.0},
    {"min_tokens": 5, "presence_penalty": 1.5, "repetition_penalty": 1.3},
)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(bench: Bench) -> Iterator[Row]:
    for size, dtype in bench.pick([*product(SIZES, DTYPES)], [((2, 17), BF16)]):
        case = f"{size[0]} x {size[1]} {name_of(dtype)}"
        for check in (check_norm, check_added_norm, check_silu, check_embedding, check_alone):
            label = {"operation": check.__name__.removeprefix("check_"), "case": case}
            yield bench.guarded(label, lambda c=check, s=size, t=dtype: c(bench, s, t))
        for is_dynamic in (True, False):
            label = {"operation": "norm to FP8", "case": f"{case} {'dynamic' if is_dynamic else 'static'}"}
            yield bench.guarded(label, lambda s=size, t=dtype, d=is_dynamic: check_fp8_norm(bench, s, t, d))
    everything = product((False, True), (24, 64, 80, 96, 128, 256), (8, 16, 128), (BF16, FP32, FP8))
    for normed, dim, block_size, dtype in bench.pick([*everything], [(True, 64, 16, BF16), (False, 64, 16, FP8)]):
        case = f"D {dim}, block {block_size}, {name_of(dtype)}{', normed heads' if normed else ''}"
        check = lambda d=dim, b=block_size, t=dtype, n=normed: check_rope(bench, (d, b), t, n)  # noqa: E731
        yield bench.guarded({"operation": "rope_kv_write", "case": case}, check)


def check_norm(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Row:
    x, weight = random(*size, dtype=dtype), random(size[1], dtype=dtype, seed=1)
    got = rms_norm_gpu(x.to(bench.device), None, weight.to(bench.device), 1e-5)
    return close(got, rms_norm_reference(x, weight, 1e-5), **LIMITS[dtype])


def check_added_norm(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Row:
    x, residual, weight = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate((size, size, size[1:])))
    kept = residual.to(bench.device, copy=True)
    got = rms_norm_gpu(x.to(bench.device), kept, weight.to(bench.device), 1e-5)
    if not torch.equal(kept.cpu(), residual + x):
        return {"passed": False, "wrong": "the residual is not the sum"}
    return close(got, rms_norm_reference(residual + x, weight, 1e-5), **LIMITS[dtype])


def check_fp8_norm(bench: Bench, size: tuple[int, int], dtype: torch.dtype, is_dynamic: bool) -> Row:
    x, weight = random(*size, dtype=dtype), random(size[1], dtype=dtype, seed=1)
    scale = None if is_dynamic else torch.tensor([0.02])
    wanted, wanted_scale = quantise_rows_reference(rms_norm_reference(x, weight, 1e-5), scale)
    on_device = None if scale is None else scale.to(bench.device)
    got, got_scale = rms_norm_fp8_gpu(x.to(bench.device), None, weight.to(bench.device), 1e-5, on_device)
    scales = close(got_scale, wanted_scale, atol=0.0, rtol=1e-2)
    return close(got.float(), wanted.float(), **LIMITS[FP8]) if scales["passed"] else scales


def check_silu(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Row:
    gate_up = random(size[0], 2 * size[1], dtype=dtype) * 4
    return close(silu_and_mul_gpu(gate_up.to(bench.device)), silu_and_mul_reference(gate_up), **LIMITS[dtype])


def check_embedding(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Row:
    table, ids = random(30, size[1], dtype=dtype), torch.tensor([0, 29, -1, 7, -3, 7])
    sampled = torch.tensor([5, -100, 11])
    got = embedding_gpu(*(part.to(bench.device) for part in (table, ids, sampled)))
    return equal(got.cpu(), embedding_reference(table, ids, sampled))


def check_alone(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Row:
    """A row's bits in the norm and the activation, alone and among others."""
    x, weight = (random(*shape, dtype=dtype).to(bench.device) for shape in ((20, 2 * size[1]), (2 * size[1],)))
    last = slice(19, 20)
    pairs = [(silu_and_mul_gpu(x)[last], silu_and_mul_gpu(x[last]))]
    pairs += [(rms_norm_gpu(x, None, weight, 1e-5)[last], rms_norm_gpu(x[last], None, weight, 1e-5))]
    return equal(*(torch.cat(parts, 1) for parts in zip(*pairs, strict=True)))


def check_rope(bench: Bench, shape: tuple[int, int], cache_dtype: torch.dtype, normed: bool) -> Row:
    """shape: (head_dim, block_size). The CPU's cache has another order inside blocks: both are read as tokens."""
    (head_dim, block_size), num_heads, num_kv_heads = shape, 6, 2
    dtype = BF16 if cache_dtype == FP8 else cache_dtype
    tables = (torch.randperm(39, generator=torch.Generator().manual_seed(0)) + 1).int().view(3, 13)
    metadata = metadata_of([1, 7, 2], [5, 7, 40], tables, block_size)
    qkv = random(10, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    inputs = [qkv, torch.arange(10) * 7, random(70, 2, head_dim // 2, dtype=FP32, seed=1)]
    weights = [random(head_dim, dtype=dtype, seed=i) for i in (2, 3)]
    cache = torch.full((40, 2, num_kv_heads, block_size, head_dim), torch.nan).to(cache_dtype)
    plain, scales = cache.to(bench.device, copy=True), (0.5, 0.25) if cache_dtype == FP8 else (1.0, 1.0)
    on_device = HeadNorm(*(weight.to(bench.device) for weight in weights), 1e-6) if normed else None
    moved = metadata_on(metadata, bench.device)
    got = rope_kv_write_gpu(*(x.to(bench.device) for x in inputs), plain, moved, WriteForm(on_device, *scales))
    norm = HeadNorm(*weights, 1e-6) if normed else None
    if cache_dtype == FP8:
        wanted = rope_kv_write_fp8(*inputs, cache, metadata, WriteForm(norm, *scales))
    else:
        wanted = rope_kv_write_reference(*inputs, cache, metadata, norm)
    queries, plain, slots = close(got, wanted, **LIMITS[dtype]), plain.cpu().float(), metadata.slot_mapping
    stored = [plain[:, i].transpose(1, 2).flatten(0, 1) for i in range(2)]
    pairs = zip(stored, read_blocks(cache, torch.arange(40)), strict=True)
    kept = [close(mine[slots], theirs[slots].float(), **LIMITS[cache_dtype]) for mine, theirs in pairs]
    others = int(plain.isfinite().sum()) - 2 * 10 * num_kv_heads * head_dim
    rows = [queries, *kept, {"passed": others == 0, "wrong": f"{others} numbers written elsewhere"}]
    return next((row for row in rows if not row["passed"]), queries)


def metadata_on(metadata: object, device: torch.device) -> object:
    """The same tensors on the device."""
    values = [getattr(metadata, each.name) for each in fields(metadata)]
    return type(metadata)(*(value.to(device) if isinstance(value, Tensor) else value for value in values))


def run_sampling(bench: Bench) -> Iterator[Row]:
    checks: tuple[Callable[[Bench, list[Case]], Row], ...] = (check_tokens, check_logprobs, check_sampled_alone)
    for kind, size in bench.pick([*product(("normal", "ties"), VOCAB_SIZES)], [("normal", 300)]):
        made = [make_case(size, kind, i, asked) for i, asked in enumerate(bench.pick(ASKED, [ASKED[0], ASKED[8]]))]
        for check in checks:
            label = {"operation": f"sampling: {check.__name__.removeprefix('check_')}", "case": f"{size} {kind} logits"}
            yield bench.guarded(label, lambda c=check, m=made: c(bench, m))


def make_case(size: int, kind: str, seed: int, asked: dict[str, object]) -> Case:
    rng = np.random.default_rng(size + seed)
    logits = rng.normal(0, 3, size) if kind == "normal" else rng.integers(-3, 3, size) * 0.5
    output, bad_words = [2, 4, 2], [[7], [4, 2, 5], [2, 4, 6]]
    params = SamplingParams(logprobs=5, **asked)
    return Case(logits.astype(np.float32), params, [1, 2, 9], output, seed * 7919, (0, 3), bad_words)


def sample_on(bench: Bench, cases: Sequence[Case], first_row: int = 0) -> Sampled:
    vocab_size, device = len(cases[0].logits), bench.device
    tables = SamplingTables.allocate(first_row + len(cases), vocab_size, device)
    scratch = SamplingScratch.allocate(len(cases), vocab_size, device)
    for table in (tables, scratch):
        for each in fields(table):
            tensor = getattr(table, each.name)
            tensor.fill_(torch.nan if tensor.is_floating_point() else -77)
    rows = torch.arange(first_row, first_row + len(cases), dtype=torch.int32, device=device)
    for row, case in enumerate(cases):
        tables.set_row(first_row + row, asked_by(case))
    logits = torch.tensor(np.array([case.logits for case in cases]), device=device)
    positions = torch.tensor([len(case.prompt) + len(case.output) for case in cases], device=device)
    sampled = sample(logits, tables, scratch, positions, rows)
    return Sampled(*(getattr(sampled, each.name).cpu() for each in fields(sampled)))


def check_tokens(bench: Bench, cases: list[Case]) -> Row:
    """Of several seeds a case."""
    cases = [replace(case, seed=case.seed + 1000 * i) for case in cases for i in bench.pick(range(8), [0])]
    got, wanted = sample_on(bench, cases).token_ids.tolist(), sample_on_cpu(cases).token_ids
    wrong = [i for i, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1]]
    where = {"wrong": [(str(cases[i].params)[:120], got[i], wanted[i]) for i in wrong[:3]]} if wrong else {}
    return {"passed": not wrong, "largest_error": len(wrong), "of": len(cases)} | where


def check_logprobs(bench: Bench, cases: list[Case]) -> Row:
    """The chosen token's, its rank, and the best ones'."""
    sampled, wanted = sample_on(bench, cases), sample_on_cpu(cases).logprobs
    chosen = torch.tensor([wanted[i][0].logprob for i in range(len(cases))])
    ranks = [wanted[i][0].rank for i in range(len(cases))]
    best = torch.tensor([max(each.logprob for each in wanted[i]) for i in range(len(cases))])
    row = close(torch.stack([sampled.logprobs, sampled.best_logprobs[:, 0]]), torch.stack([chosen, best]), atol=2e-5)
    return row if sampled.ranks.tolist() == ranks else row | {"passed": False, "wrong": "ranks"}


def check_sampled_alone(bench: Bench, cases: list[Case]) -> Row:
    """Bits of token and logprob, alone and among others in other rows."""
    together = sample_on(bench, cases, first_row=3)
    alone = [sample_on(bench, [case]) for case in cases]
    columns = [torch.cat([getattr(each, name) for each in alone]).double() for name in ("token_ids", "logprobs")]
    return equal(torch.stack([together.token_ids.double(), together.logprobs.double()]), torch.stack(columns))
