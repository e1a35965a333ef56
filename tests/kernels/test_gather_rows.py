import pytest
import torch

from octavo.kernels.gather_rows import gather_rows, gather_rows_reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 576)])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_gives_the_rows_in_the_order_asked_for(dtype, size, num_threads):
    torch.set_num_threads(num_threads)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(size, generator=generator).to(dtype)
    indices = torch.randint(0, size[0], (401,), generator=generator)
    assert torch.equal(gather_rows(table, indices), gather_rows_reference(table, indices))


def test_no_index_gives_no_row():
    assert gather_rows(torch.ones(3, 4), torch.empty(0, dtype=torch.int64)).shape == (0, 4)


@pytest.mark.parametrize("index", [-1, 3, 2**62])
def test_refuses_an_index_outside_of_the_table(index):
    with pytest.raises(IndexError):
        gather_rows(torch.ones(3, 4), torch.tensor([0, index]))
