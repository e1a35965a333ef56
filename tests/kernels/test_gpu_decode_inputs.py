import pytest
import torch
from kernels.triton_support import interpreted

from octavo.kernels.decode_inputs import decode_inputs_gpu, decode_inputs_reference

NUM_ROWS, MAX_BLOCKS = 6, 1030


def a_table():
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(1, 10_000, (NUM_ROWS + 1, MAX_BLOCKS), dtype=torch.int32, generator=generator)
    table[NUM_ROWS] = 0
    return table


@pytest.mark.parametrize("block_size", [1, 16])
def test_places_find_their_lengths_slots_and_blocks(block_size):
    table = a_table()
    rows = torch.tensor([4, 0, NUM_ROWS, 2, 5])
    positions = torch.tensor([0, block_size - 1, 0, block_size, MAX_BLOCKS * block_size - 1])
    with interpreted():
        found = decode_inputs_gpu(rows, positions, table, block_size)
    expected = decode_inputs_reference(rows, positions, table, block_size)
    assert found.seq_lens.tolist() == expected.seq_lens.tolist() == [1, block_size, 0, block_size + 1, positions[4] + 1]
    assert found.num_tokens.tolist() == expected.num_tokens.tolist() == found.seq_lens.tolist()
    assert found.sampling_rows.tolist() == expected.sampling_rows.tolist() == [4, 0, -1, 2, 5]
    assert found.slot_mapping.tolist() == expected.slot_mapping.tolist()
    assert found.slot_mapping[2] == 0
    assert found.slot_mapping[1] == table[0, 0].item() * block_size + block_size - 1
    for place, length in enumerate(found.seq_lens.tolist()):
        used = -(-length // block_size)
        assert found.block_table[place, :used].tolist() == expected.block_table[place, :used].tolist()
