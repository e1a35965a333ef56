from dataclasses import replace

import numpy as np
import pytest

from octavo.core.step import NewRow, SchedulerOutput
from octavo.pooling import Pooling, PoolingKind
from octavo.runner.input_batch import InputBatch
from octavo.sampling_params import SamplingParams


def new_row(row, token_ids, blocks):
    return NewRow(row, token_ids, len(token_ids), blocks, SamplingParams(temperature=0), 0, (), [], False)


def step(removed=(), new=(), new_blocks=(), work=()):
    rows, computed, scheduled = (list(column) for column in zip(*work, strict=True)) if work else ([], [], [])
    return SchedulerOutput(0, list(removed), list(new), [], list(new_blocks), rows, computed, scheduled)


@pytest.fixture
def batch():
    return InputBatch(max_num_seqs=4, max_model_len=32, block_size=4, vocab_size=100)


def test_a_step_names_tokens_positions_slots_and_lengths_of_each_row(batch):
    first = step(
        new=[new_row(2, [10, 11, 12, 13, 14, 15], [7, 3]), new_row(0, [20, 21], [5])], work=[(2, 3, 2), (0, 0, 2)]
    )
    batch.apply(first)
    arrays = batch.arrays(first)
    assert arrays.token_ids.tolist() == [13, 14, 20, 21]
    assert arrays.positions.tolist() == [3, 4, 0, 1]
    assert arrays.slot_mapping.tolist() == [7 * 4 + 3, 3 * 4 + 0, 5 * 4 + 0, 5 * 4 + 1]
    assert arrays.cu_seqlens_q.tolist() == [0, 2, 4]
    assert arrays.seq_lens.tolist() == [5, 2]
    assert arrays.num_scheduled_tokens.tolist() == [2, 2]
    assert arrays.samples.tolist() == [False, True]
    assert batch.block_table[[2, 0], :2].tolist() == [[7, 3], [5, 0]]


def test_a_row_that_asks_for_a_vector_pools_at_its_end_and_samples_nothing(batch):
    pooling = Pooling(PoolingKind.LAST, normalize=True)
    new = [replace(new_row(0, [1, 2, 3], [5]), pooling=pooling), new_row(1, [1, 2], [6])]
    first = step(new=new, work=[(0, 0, 2), (1, 0, 2)])
    batch.apply(first)
    arrays = batch.arrays(first)
    assert (arrays.samples.tolist(), arrays.pools.tolist()) == ([False, True], [False, False])
    last = step(removed=[1], new=[new_row(1, [1], [6])], work=[(0, 2, 1), (1, 0, 1)])
    batch.apply(last)
    arrays = batch.arrays(last)
    assert (arrays.samples.tolist(), arrays.pools.tolist()) == ([False, True], [True, False])


def test_new_tokens_and_blocks_are_appended_to_their_rows(batch):
    batch.apply(step(new=[new_row(1, [10, 11, 12, 13], [7])]))
    batch.append_token(1, 99)
    later = step(new_blocks=[(1, [2])], work=[(1, 4, 1)])
    batch.apply(later)
    arrays = batch.arrays(later)
    assert arrays.token_ids.tolist() == [99]
    assert arrays.slot_mapping.tolist() == [2 * 4]
    assert batch.block_table[1, :2].tolist() == [7, 2]
    assert batch.tokens_of(1).tolist() == [10, 11, 12, 13, 99]


def test_a_row_can_be_left_and_taken_in_one_step(batch):
    batch.apply(step(new=[new_row(1, list(range(20)), [1, 2, 3, 4, 5])]))
    again = step(removed=[1], new=[new_row(1, [50], [6])], work=[(1, 0, 1)])
    batch.apply(again)
    arrays = batch.arrays(again)
    assert arrays.token_ids.tolist() == [50]
    assert (batch.block_table[1, 0], batch.num_blocks[1]) == (6, 1)
    assert batch.tokens_of(1).tolist() == [50]


def test_a_token_that_only_the_device_knows_is_named_by_its_row(batch):
    batch.apply(step(new=[new_row(3, [10, 11], [7])]))
    batch.append_unknown(3)
    later = step(work=[(3, 2, 1)])
    batch.apply(later)
    arrays = batch.arrays(later)
    assert (arrays.token_ids.tolist(), arrays.samples.tolist()) == ([-4], [True])


def test_tables_stay_where_they_are(batch):
    tables = (batch.token_ids, batch.block_table, batch.num_tokens)
    addresses = [table.ctypes.data for table in tables]
    for round_ in range(3):
        batch.apply(step(removed=[0] if round_ else [], new=[new_row(0, [round_], [1])]))
        batch.append_token(0, 5)
    assert [table.ctypes.data for table in (batch.token_ids, batch.block_table, batch.num_tokens)] == addresses


def test_the_inputs_of_a_step_are_copies_that_later_steps_do_not_change(batch):
    first = step(new=[new_row(0, [1, 2], [1])], work=[(0, 0, 2)])
    batch.apply(first)
    arrays = batch.arrays(first)
    batch.apply(step(removed=[0], new=[new_row(0, [9, 9], [8])]))
    assert arrays.slot_mapping.tolist() == [4, 5]
    assert arrays.token_ids.tolist() == [1, 2]


def test_a_row_whose_token_never_came_is_computed_but_not_sampled(batch):
    late = step(new=[new_row(0, [1, 2], [1])], work=[(0, 2, 1)])
    batch.apply(late)
    assert batch.arrays(late).samples.tolist() == [False]


@pytest.mark.parametrize("bad", [step(removed=[3]), step(new=[new_row(0, [1], [1]), new_row(0, [1], [1])])])
def test_rows_out_of_step_with_the_scheduler_are_our_bug(batch, bad):
    with pytest.raises(AssertionError, match="row"):
        batch.apply(bad)


def test_random_steps_equal_tables_built_anew_each_time(batch):
    rng = np.random.default_rng(0)
    known: dict[int, tuple[list[int], list[int]]] = {}
    for _ in range(200):
        removed = [row for row in known if rng.random() < 0.1]
        for row in removed:
            del known[row]
        new = []
        for row in range(4):
            if row not in known and rng.random() < 0.5:
                tokens = rng.integers(0, 100, rng.integers(1, 12)).tolist()
                known[row] = (tokens, rng.integers(1, 50, -(-len(tokens) // 4)).tolist())
                new.append(new_row(row, list(tokens), list(known[row][1])))
        work = []
        for row, (tokens, _) in known.items():
            computed = int(rng.integers(0, len(tokens)))
            work.append((row, computed, int(rng.integers(1, len(tokens) - computed + 1))))
        current = step(removed, new, [], work)
        batch.apply(current)
        if not work:
            continue
        arrays = batch.arrays(current)
        expected = [(known[r][0][p], p, known[r][1][p // 4] * 4 + p % 4) for r, c, n in work for p in range(c, c + n)]
        columns = (arrays.token_ids, arrays.positions, arrays.slot_mapping)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
        for row, computed, count in work:
            tokens, blocks = known[row]
            if computed + count == len(tokens) and len(tokens) < 31:
                tokens.append(int(rng.integers(0, 100)))
                batch.append_token(row, tokens[-1])
                if len(tokens) > len(blocks) * 4:
                    blocks.append(int(rng.integers(1, 50)))
                    batch.apply(step(new_blocks=[(row, blocks[-1:])]))
