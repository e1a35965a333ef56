"""Plays the runner: keeps sequences in a paged cache with shuffled blocks and feeds a model ragged steps."""

import torch

from octavo.kernels.paged_attention import AttentionMetadata


class Driver:
    def __init__(self, model, dtype=torch.float32, block_size=16, num_blocks=256, placement_seed=0):
        spec = model.spec
        shape = (num_blocks, 2, spec.num_kv_heads, block_size, spec.head_dim)
        self.model = model
        self.block_size = block_size
        self.kv_caches = [torch.full(shape, float("nan"), dtype=dtype) for _ in range(spec.num_layers)]
        generator = torch.Generator().manual_seed(placement_seed)
        self._free = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
        self._tables: dict[object, list[int]] = {}

    def share(self, source, target, num_blocks):
        """`target` begins with the first full blocks of `source`, as a prefix-cache hit."""
        self._tables[target] = self._tables[source][:num_blocks]

    def step(self, rows):
        """rows: (sequence's name, token ids, first position) each. Returns one logits tensor [n, vocab] a row."""
        for name, token_ids, start in rows:
            table = self._tables.setdefault(name, [])
            while len(table) * self.block_size < start + len(token_ids):
                table.append(self._free.pop())
        tables = [self._tables[name] for name, _, _ in rows]
        width = max(map(len, tables))
        lengths = [len(token_ids) for _, token_ids, _ in rows]
        ends = [start + len(token_ids) for _, token_ids, start in rows]
        positions = [torch.arange(start, end) for (_, _, start), end in zip(rows, ends, strict=True)]
        slots = [
            torch.tensor(table)[where // self.block_size] * self.block_size + where % self.block_size
            for table, where in zip(tables, positions, strict=True)
        ]
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, *lengths]).cumsum(0).int(),
            seq_lens=torch.tensor(ends, dtype=torch.int32),
            block_table=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
            slot_mapping=torch.cat(slots),
            max_seqlen_q=max(lengths),
            max_seq_len=max(ends),
            num_decode_rows=next((row for row, length in enumerate(lengths) if length > 1), len(lengths)),
        )
        token_ids = torch.tensor([token for _, tokens, _ in rows for token in tokens])
        with torch.inference_mode():
            hidden = self.model(token_ids, torch.cat(positions), self.kv_caches, metadata)
            return list(self.model.compute_logits(hidden).split(lengths))

    def run(self, name, token_ids, chunk_size):
        """Feeds one sequence in chunks; returns the logits of all its positions."""
        chunks = [(start, token_ids[start : start + chunk_size]) for start in range(0, len(token_ids), chunk_size)]
        return torch.cat([self.step([(name, chunk, start)])[0] for start, chunk in chunks])


def random_tokens(length, seed=0):
    return torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
