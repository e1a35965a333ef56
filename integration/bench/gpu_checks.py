"""Stage 1a: the attention kernels on the device, against dense attention in fp64 and, bit for bit, against themselves.

Every check is a row with the largest error; none stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from gpu_timing import Bench, Row, captured
from kernels.plain_paged import dense_attention, make_cache, random_sequence
from torch import Tensor

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.decode_plan import DecodeCapacity, DecodeScratch, plan_decode
from octavo.kernels.paged_attention import AttentionMetadata, paged_attention_gpu
from octavo.kernels.paged_decode import paged_decode
from octavo.kernels.paged_prefill import PrefillRows, paged_prefill

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
DTYPES = (BF16, FP16, FP32)
TOLERANCE = {FP32: 3e-5, BF16: 2e-2, FP16: 3e-3}
LLAMA = (32, 8)
# Queries, keys and values [n, heads, head_dim] of a whole sequence.
Sequence3 = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A ragged batch: one sequence a length. heads: (num_heads, num_kv_heads)."""

    name: str
    dtype: torch.dtype = BF16
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    block_size: int = 16
    lengths: tuple[int, ...] = (1, 15, 16, 17, 63, 256, 257, 1000)
    cache_dtype: torch.dtype | None = None
    window: int | None = None
    soft_cap: float | None = None

    @property
    def spec(self) -> AttentionSpec:
        scales = {"k_scale": 0.5, "v_scale": 0.25} if self.cache_dtype else {}
        return AttentionSpec(self.head_dim**-0.5, self.window, self.soft_cap, **scales)

    def sequences(self) -> list[Sequence3]:
        """What an FP8 cache holds stands in them as it is stored."""
        found = [random_sequence(n, self.heads, self.head_dim, self.dtype, i) for i, n in enumerate(self.lengths)]
        if self.cache_dtype is None:
            return found
        return [(query, *(part.to(FP8).to(self.dtype) for part in stored)) for query, *stored in found]

    def query_lens(self) -> list[int]:
        """Whole prompts, and last chunks over a cached prefix."""
        return [n if i % 2 else n // 3 + 1 for i, n in enumerate(self.lengths)]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cases() -> list[Case]:
    return [
        *(Case(f"D {dim} {name_of(t)}", t, head_dim=dim) for dim, t in product((64, 80, 96, 128, 256), DTYPES)),
        *(Case(f"block {size}", block_size=size) for size in (8, 32, 64, 128)),
        *(Case(f"GQA {group}", heads=(2 * group, 2)) for group in range(1, 9)),
        *(Case(f"window {n}", window=n) for n in (1, 16, 17, 256, 300, 5000)),
        *(Case(f"soft cap, window {n}", soft_cap=5.0, window=n) for n in (None, 270)),
        *(
            Case(f"FP8 D {dim} {name_of(t)}", t, head_dim=dim, cache_dtype=FP8)
            for dim, t in product((64, 80, 128, 256), (BF16, FP16))
        ),
        Case("Llama", heads=LLAMA, head_dim=128, lengths=(1, 255, 1000, 2600)),
        Case("Llama FP8", heads=LLAMA, head_dim=128, lengths=(1, 255, 1000, 2600), cache_dtype=FP8),
    ]


DRY_CASES = [Case("D 64", lengths=(1, 40)), Case("FP8, window 17", lengths=(40,), cache_dtype=FP8, window=17)]


def close(got: Tensor, wanted: Tensor, atol: float, rtol: float = 0.0) -> Row:
    """What is not a number is never close."""
    got, wanted = got.cpu().double(), wanted.cpu().double()
    error = (got - wanted).abs()
    passed = bool((error <= atol + rtol * wanted.abs()).all())
    return {"passed": passed, "largest_error": float(error.max()), "atol": atol, "rtol": rtol}


def equal(got: Tensor, wanted: Tensor) -> Row:
    """Bit for bit."""
    error = float((got.double() - wanted.double()).abs().max())
    return {"passed": torch.equal(got, wanted), "largest_error": error, "atol": 0.0, "rtol": 0.0}


def run(bench: Bench) -> Iterator[Row]:
    for case in bench.pick(cases(), DRY_CASES):
        yield bench.guarded({"operation": "paged_decode", "case": case.name}, lambda c=case: check_decode(bench, c))
    for case in bench.pick(cases(), DRY_CASES):
        yield bench.guarded({"operation": "paged_prefill", "case": case.name}, lambda c=case: check_prefill(bench, c))
    long = Case("one of 33,000", heads=LLAMA, head_dim=128, lengths=(33000, 1, 1024))
    for case in bench.pick([long], []):
        yield bench.guarded({"operation": "paged_decode", "case": case.name}, lambda c=case: check_decode(bench, c))
    yield bench.guarded({"operation": "a step", "case": "decode rows and chunks"}, lambda: check_mixed(bench))
    yield bench.guarded({"operation": "a captured step", "case": "other lengths"}, lambda: check_replay(bench))
    yield from invariance(bench)


def poisoned(capacity: DecodeCapacity, window: int | None, device: torch.device) -> DecodeScratch:
    scratch = capacity.allocate([window], device)
    scratch.partial_output.fill_(torch.nan)
    scratch.partial_lse.fill_(torch.nan)
    return scratch


def decode(bench: Bench, case: Case, sequences: Sequence[Sequence3], seed: int = 0) -> Tensor:
    """The last query of each sequence. seed: where the blocks lie."""
    lengths = [len(keys) for _, keys, _ in sequences]
    cache, table = make_cache(sequences, [1] * len(lengths), case.block_size, case.window, case.cache_dtype, seed)
    query = torch.stack([sequence[0][-1] for sequence in sequences]).to(bench.device)
    scratch = poisoned(DecodeCapacity(len(lengths), max(lengths), *query.shape[1:]), case.window, bench.device)
    out = torch.full_like(query, torch.nan)
    plan_decode(torch.tensor(lengths, dtype=torch.int32, device=bench.device), scratch)
    return paged_decode(query, cache.to(bench.device), table.to(bench.device), scratch, case.spec, out).cpu()


def prefill(
    bench: Bench, case: Case, sequences: Sequence[Sequence3], query_lens: Sequence[int], seed: int = 0
) -> Tensor:
    """The last so many queries of each sequence."""
    cache, table = make_cache(sequences, query_lens, case.block_size, case.window, case.cache_dtype, seed)
    parts = [query[len(query) - n :] for (query, _, _), n in zip(sequences, query_lens, strict=True)]
    query = torch.cat(parts).to(bench.device)
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    lengths = torch.tensor([len(keys) for _, keys, _ in sequences], dtype=torch.int32)
    rows = PrefillRows(*(part.to(bench.device) for part in (starts, lengths, table)))
    out = torch.full_like(query, torch.nan)
    return paged_prefill(query, cache.to(bench.device), rows, case.spec, out).cpu()


def check_decode(bench: Bench, case: Case) -> Row:
    sequences = case.sequences()
    wanted = torch.cat([dense_attention(sequence, 1, case.spec) for sequence in sequences])
    return close(decode(bench, case, sequences), wanted, TOLERANCE[case.dtype])


def check_prefill(bench: Bench, case: Case) -> Row:
    sequences, query_lens = case.sequences(), case.query_lens()
    pairs = zip(sequences, query_lens, strict=True)
    wanted = torch.cat([dense_attention(sequence, n, case.spec) for sequence, n in pairs])
    return close(prefill(bench, case, sequences, query_lens), wanted, TOLERANCE[case.dtype])


def check_mixed(bench: Bench) -> Row:
    """One call for rows of one query and chunks of prompts."""
    case = Case("", lengths=bench.pick([(300, 17, 270)], [(20, 17, 30)])[0])
    sequences, query_lens = case.sequences(), [1, 1, case.lengths[2] // 2]
    cache, table = make_cache(sequences, query_lens)
    parts = [query[len(query) - n :] for (query, _, _), n in zip(sequences, query_lens, strict=True)]
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int().to(bench.device),
        seq_lens=torch.tensor(case.lengths, dtype=torch.int32, device=bench.device),
        block_table=table.to(bench.device),
        slot_mapping=torch.empty(0, dtype=torch.int64, device=bench.device),
        max_seqlen_q=max(query_lens),
        max_seq_len=max(case.lengths),
        num_decode_rows=2,
    )
    got = paged_attention_gpu(torch.cat(parts).to(bench.device), cache.to(bench.device), metadata, case.spec)
    pairs = zip(sequences, query_lens, strict=True)
    return close(got, torch.cat([dense_attention(each, n, case.spec) for each, n in pairs]), TOLERANCE[case.dtype])


def check_replay(bench: Bench) -> Row:
    """A graph captured on some lengths, replayed on others: plan, work list and tables come from device memory."""
    case = Case("", lengths=bench.pick([(1, 256, 257, 690)], [(1, 20, 17, 30)])[0])
    sequences = case.sequences()
    cache, table = (part.to(bench.device) for part in make_cache(sequences, [1] * 4))
    # The lengths that it is captured on lead beyond the rows' own blocks.
    table = table.clamp(max=len(cache) - 1)
    query = torch.stack([sequence[0][-1] for sequence in sequences]).to(bench.device)
    out = torch.full_like(query, torch.nan)
    scratch = poisoned(DecodeCapacity(4, max(case.lengths), *query.shape[1:]), None, bench.device)
    seq_lens = torch.tensor([max(case.lengths), 0, 0, 0], dtype=torch.int32, device=bench.device)

    def step() -> None:
        plan_decode(seq_lens, scratch)
        paged_decode(query, cache, table, scratch, case.spec, out)

    replay = step if bench.is_dry else captured([step]).replay
    seq_lens.copy_(torch.tensor(case.lengths))
    out.fill_(torch.nan)
    replay()
    wanted = torch.cat([dense_attention(sequence, 1, case.spec) for sequence in sequences])
    return close(out, wanted, TOLERANCE[case.dtype])


def invariance(bench: Bench) -> Iterator[Row]:
    """A row alone, among others with its blocks elsewhere, and its prompt in chunks of several sizes."""
    for cache_dtype, length in bench.pick([*product((None, FP8), (40, 256, 600, 3000))], [(None, 40)]):
        case = Case("", heads=LLAMA if not bench.is_dry else (4, 2), lengths=(length,), cache_dtype=cache_dtype)
        label = {"operation": "bits of paged_decode", "case": f"{length} tokens {'FP8' if cache_dtype else 'bf16'}"}
        yield bench.guarded(label, lambda c=case: decode_bits(bench, c))
    for window, soft_cap in bench.pick([(None, None), (37, None), (100, 5.0)], [(None, None)]):
        case = Case("", lengths=(70 if bench.is_dry else 1500,), window=window, soft_cap=soft_cap)
        for num_queries in bench.pick([1, 2, 10, 65, 300, 1000], [10]):
            label = {"operation": "bits of paged_prefill", "case": f"last {num_queries}, window {window}"}
            yield bench.guarded(label, lambda c=case, n=num_queries: prefill_bits(bench, c, n))


def decode_bits(bench: Bench, case: Case) -> Row:
    [sequence] = case.sequences()
    num_mates = 1 if bench.is_dry else 9
    mates = [random_sequence(20 + 50 * i, case.heads, case.head_dim, BF16, i + 1) for i in range(num_mates)]
    together = [*mates[:5], sequence, *mates[5:]]
    return equal(decode(bench, case, together, seed=1)[len(mates[:5])], decode(bench, case, [sequence])[0])


def prefill_bits(bench: Bench, case: Case, num_queries: int) -> Row:
    [sequence] = case.sequences()
    whole = prefill(bench, case, [sequence], case.lengths)
    mates = [random_sequence(20 + 31 * i, case.heads, case.head_dim, BF16, i + 1) for i in range(2)]
    got = prefill(bench, case, [mates[0], sequence, mates[1]], [13, num_queries, 7], seed=num_queries)
    return equal(got[13 : 13 + num_queries], whole[len(whole) - num_queries :])
