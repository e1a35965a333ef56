import pytest
import torch

pytest.importorskip("triton")

from octavo.kernels.ahead_of_time import compiling
from octavo.kernels.decode_plan import DecodeCapacity, plan_decode

pytestmark = pytest.mark.slow


def test_a_plan_for_any_number_of_rows_is_written_by_the_same_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    meta = torch.device("meta")
    scratch = DecodeCapacity(max_num_seqs=12, max_model_len=600, num_heads=4, head_dim=64).allocate([None], meta)
    compiled = []
    with compiling(90, compiled.append):
        for num_rows in (1, 2, 3, 8, 12):
            plan_decode(torch.empty(num_rows, dtype=torch.int32, device=meta), scratch)
    assert compiled == ["write_plan"]
