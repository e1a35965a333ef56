"""Plays the scheduler for one runner: gives rows and shuffled blocks, builds steps by hand, remembers the tokens."""

from dataclasses import dataclass, field

import torch

from octavo.core.step import NewRow, SchedulerOutput
from octavo.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)


@dataclass
class Sequence:
    row: int
    token_ids: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    logprobs: list = field(default_factory=list)
    prompt_logprobs: list = field(default_factory=list)
    failed: str = ""


class RowDriver:
    def __init__(self, runner, block_size, max_num_seqs, placement_seed=0):
        self.runner = runner
        self.block_size = block_size
        generator = torch.Generator().manual_seed(placement_seed)
        self.free_blocks = (torch.randperm(runner.num_blocks - 1, generator=generator) + 1).tolist()
        self.free_rows = list(range(max_num_seqs))
        self.running: dict[str, Sequence] = {}
        self._removed: list[int] = []
        self._new: list[NewRow] = []
        self._copies: list[tuple[int, int]] = []

    def add(self, name, token_ids, num_prompt_tokens=None, params=GREEDY, seed=0, blocks=(), **fields):
        """`blocks` hold the KV of the first len(blocks) * block_size tokens already."""
        sequence = Sequence(self.free_rows.pop(), list(token_ids), list(blocks), len(blocks) * self.block_size)
        self.running[name] = sequence
        new = {
            "num_prompt_tokens": num_prompt_tokens or len(token_ids),
            "params": params,
            "seed": seed,
            "stop_token_ids": (),
            "bad_words_token_ids": [],
            "prompt_logprobs": False,
        }
        self._new.append(
            NewRow(row=sequence.row, token_ids=list(token_ids), block_table=list(blocks), **(new | fields))
        )

    def remove(self, name):
        sequence = self.running.pop(name)
        self._removed.append(sequence.row)
        self.free_rows.append(sequence.row)
        self.free_blocks += sequence.blocks
        return sequence

    def copy_block(self, source):
        """A free block that holds what `source` holds, from the next step on."""
        target = self.free_blocks.pop()
        self._copies.append((source, target))
        return target

    def step(self, counts=None):
        """Computes `counts` (name -> tokens; default: all that is missing of every sequence)."""
        if counts is None:
            counts = {name: len(s.token_ids) - s.num_computed for name, s in self.running.items()}
        scheduled = [self.running[name] for name in counts]
        new_blocks = []
        for sequence, count in zip(scheduled, counts.values(), strict=True):
            missing = -(-(sequence.num_computed + count) // self.block_size) - len(sequence.blocks)
            if missing > 0:
                blocks = [self.free_blocks.pop() for _ in range(missing)]
                sequence.blocks += blocks
                new_blocks.append((sequence.row, blocks))
        output = self.runner.execute(
            SchedulerOutput(
                step_id=1,
                removed_rows=self._removed,
                new_rows=self._new,
                block_copies=self._copies,
                new_blocks=new_blocks,
                rows=[s.row for s in scheduled],
                num_computed_tokens=[s.num_computed for s in scheduled],
                num_scheduled_tokens=list(counts.values()),
            )
        )
        self._removed, self._new, self._copies = [], [], []
        for index, (sequence, count) in enumerate(zip(scheduled, counts.values(), strict=True)):
            sequence.num_computed += count
            sequence.token_ids += output.sampled_token_ids[index]
            sequence.logprobs += output.logprobs.get(index, [])
            sequence.prompt_logprobs += output.prompt_logprobs.get(index, [])
            sequence.failed = output.failed.get(index, "")
        return output

    def generate(self, name, count, chunk_size=1000):
        """Runs one sequence alone until it has `count` tokens more; returns these."""
        sequence = self.running[name]
        first = len(sequence.token_ids)
        while len(sequence.token_ids) < first + count:
            self.step({name: min(chunk_size, len(sequence.token_ids) - sequence.num_computed)})
        return sequence.token_ids[first:]
