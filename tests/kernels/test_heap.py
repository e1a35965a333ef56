import os
import subprocess
import sys

import pytest

# Page faults of steps that hold and free pieces as a model's do, after ten steps of warm-up.
SCRIPT = """
import resource, torch
from octavo.kernels.heap import keep_freed_memory
torch.set_num_threads(1)
keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10 * 8):
        held = [torch.zeros(kib << 10, dtype=torch.uint8) for kib in (1000, 600, 3100, 1500, 13000)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="speaks of the GNU C library")
def test_freed_memory_stays_unless_the_environment_says_otherwise():
    assert faults() < 1000
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > 100_000
