import subprocess
import sys

import pytest

_WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from octavo.kernels import decode_plan, paged_attention
try:
    decode_plan.write_plan[(1,)](0)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_the_language_modules_can_be_imported_and_a_launch_says_what_is_missing():
    command = [sys.executable, "-c", _WITHOUT_TRITON]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "write_plan" in printed
    assert "octavo[triton-language]" in printed
