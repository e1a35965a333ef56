"""Kernels compiled by one process are those that another one looks for, whatever steps it runs."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from octavo.cli import app

pytest.importorskip("triton")

pytestmark = pytest.mark.slow

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
}
# More rows than get their graphs at start.
SETTINGS = {"max_num_seqs": 20, "max_num_batched_tokens": 200}

# Random batches of random prompts, each followed by decode steps.
_SERVE = """
import random, sys
from octavo import cli
from octavo.config import resolve
from octavo.core.step import NewRow, SchedulerOutput
from octavo.kernels.ahead_of_time import compiling
from octavo.runner.ahead_of_time import shape_runner
from octavo.sampling_params import SamplingParams
config = cli._config_of(sys.argv[1], {"device": "cuda"})
checkpoint = cli._shapes_of(config)
config = resolve(config, checkpoint)
generator = random.Random(0)
names = []
with compiling(90, names.append):
    runner = shape_runner(config, checkpoint)
    while runner.make_ready():
        pass
    for _ in range(60):
        counts = sorted(generator.choice((1, 1, 2, 3, 8, 9)) for _ in range(generator.randint(1, 20)))
        rows = list(range(len(counts)))
        params = SamplingParams(temperature=generator.choice((0, 1)), top_k=generator.choice((0, 5)))
        new = [NewRow(row, [0] * n, n, [0], params, 0, (), [], False) for row, n in enumerate(counts)]
        runner.execute(SchedulerOutput(0, [], new, [], [], rows, [0] * len(rows), counts))
        runner.execute(SchedulerOutput(0, [], [], [], [], rows, counts, [1] * len(rows)))
        runner.execute(SchedulerOutput(0, rows, [], [], [], [], [], []))
print(len(names))
"""


def run(folder, *command):
    env = {"PATH": "/usr/bin:/bin", "OCTAVO_KERNEL_CACHE": str(folder), "OCTAVO_NATIVE": "0"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_later_process_compiles_nothing_anew(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.json").write_text(json.dumps({"model": "model", **SETTINGS}))
    command = "-c", "from octavo.cli import main; main()", "compile-kernels", str(tmp_path / "model.json")
    cache = tmp_path / "cache"
    num_kernels, *_ = run(tmp_path / "unused", *command, "--out", str(cache))
    compiled = files(cache)
    assert int(num_kernels) == sum(path.suffix == ".cubin" for path in compiled) > 10
    assert not (tmp_path / "unused").exists()
    (num_launched,) = run(cache, "-c", _SERVE, str(tmp_path / "model.json"))
    assert num_launched == num_kernels
    assert files(cache) == compiled


@pytest.mark.parametrize("arch", ["90", "sm_9", "sm_75", "sm_90; rm"])
def test_an_architecture_that_is_none_is_refused_by_name(arch):
    done = CliRunner().invoke(app, ["compile-kernels", "--arch", arch])
    assert done.exit_code == 1
    assert "--arch" in done.output
