"""The command line: `octavo generate`, `bench` and `compile-kernels`. Serving is the hosts' business."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octavo import bench as benchmark
from octavo import workloads
from octavo.checkpoint import Checkpoint, open_checkpoint, read_json
from octavo.config import NOBODY_WAITS_S, EngineConfig
from octavo.errors import InvalidRequest, OctavoError
from octavo.llm import LLM
from octavo.parsing import parse_json, parse_mapping
from octavo.progress import count_bar, load_bar
from octavo.sampling_params import SamplingParams

_TABLE_COLUMNS = 150
_KERNEL_CACHE = "OCTAVO_KERNEL_CACHE"

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Octavo: an LLM serving engine.")

Model = Annotated[str | None, typer.Option(help="Model folder or GGUF file; the embedded SmolLM2 when absent.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores when absent.")]


def main() -> None:
    """The entry point of the `octavo` command."""
    app()


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="The text to continue; - reads it from standard input.")],
    model: Model = None,
    stream: Annotated[bool, typer.Option(help="Print the text as it comes.")] = False,
    chat: Annotated[bool, typer.Option(help="Treat the prompt as a user's message, in the model's template.")] = False,
    sampling: Annotated[
        str, typer.Option(metavar="JSON", help='Sampling parameters, such as {"max_tokens": 64, "temperature": 0}.')
    ] = "{}",
    dtype: Dtype = "auto",
) -> None:
    """Complete one prompt and print the text."""
    with _one_clear_line():
        params = SamplingParams.from_json("--sampling", sampling)
        text = sys.stdin.read() if prompt == "-" else prompt
        llm = LLM(model, dtype=dtype)
        question = [{"role": "user", "content": text}] if chat else text
        if not stream:
            result = llm.generate([question], params)[0]
            print("\n".join(output.text for output in result.outputs))
            return
        for output in llm.stream(question, params):
            print("".join(part.text for part in output.outputs if part.index == 0), end="", flush=True)
        print()


@app.command()
def bench(
    model: Model = None,
    workload: Annotated[list[str] | None, typer.Option(help="W1, W2, W3 or W4; all when absent.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each; the median is reported.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Measure the engine on the standard workloads, and print a table."""
    with _one_clear_line():
        names = workload or workloads.NAMES
        settings = {"model": model, "dtype": dtype, "num_threads": threads, "itl_budget_s": NOBODY_WAITS_S}
        config = EngineConfig.from_mapping(settings)
        with load_bar() as show:
            results = benchmark.run(config, names, repeat, lambda stage, done, total: show(stage, done / total))
        console = Console()
        if not console.is_terminal:
            # Piped output has no width of its own; the table wants more than the usual 80 columns.
            console.width = _TABLE_COLUMNS
        console.print(benchmark.render(results))
        if json is not None:
            json.write_text(benchmark.to_json(results, config))


@app.command()
def compile_kernels(
    model: Annotated[
        str | None, typer.Argument(help="Model folder, GGUF file or model.json; SmolLM2 if absent.")
    ] = None,
    arch: Annotated[str, typer.Option(help="The GPU's architecture: sm_90 for H100 and H200.")] = "sm_90",
    out: Annotated[
        Path | None, typer.Option(envvar=_KERNEL_CACHE, help="Where to; the user's cache folder when absent.")
    ] = None,
    engine_args: Annotated[
        str, typer.Option(metavar="JSON", help='Settings to serve with, such as {"max_num_seqs": 512}.')
    ] = "{}",
) -> None:
    """Compile a model's GPU kernels ahead of time; no GPU is needed.

    An engine with the same settings finds them in the folder that OCTAVO_KERNEL_CACHE names.
    """
    with _one_clear_line():
        found = re.fullmatch(r"sm_(\d{2,3})", arch)
        if found is None or int(found[1]) < 80:
            raise InvalidRequest("--arch", arch, "sm_80, sm_90, ...")
        config = _config_of(model, parse_mapping("--engine-args", parse_json("--engine-args", engine_args)))
        if out is not None:
            # Read when the kernels' modules are imported, which are not before they are needed.
            os.environ[_KERNEL_CACHE] = str(out.absolute())
        compiler = importlib.import_module("octavo.runner.ahead_of_time")
        num_kernels = 0
        with count_bar("kernels", None) as show:

            def told(name: str) -> None:
                nonlocal num_kernels
                num_kernels += 1
                show(name)

            compiler.compile_kernels(config, _shapes_of(config), int(found[1]), told)
        where = "the user's cache folder" if out is None else f"{out}: serve with {_KERNEL_CACHE}={out.absolute()}"
        print(f"{num_kernels} kernels for {arch} in {where}")


def _config_of(model: str | None, engine_args: Mapping[str, object]) -> EngineConfig:
    """Of a model, or of a model.json; `engine_args` come on top."""
    if model is None or not model.endswith(".json"):
        return EngineConfig.from_mapping({"model": model, **engine_args})
    file = Path(model)
    return EngineConfig.from_mapping({**read_json(file), **engine_args}, folder=file.parent)


def _shapes_of(config: EngineConfig) -> Checkpoint:
    """The checkpoint; of a folder only the config, as the weights may not be there yet."""
    file = Path(config.model or "") / "config.json"
    return (
        Checkpoint(file.parent, read_json(file), {}, ())
        if config.model and file.is_file()
        else open_checkpoint(config.model)
    )


@contextmanager
def _one_clear_line() -> Iterator[None]:
    """Whatever the user got wrong is one line on stderr, and exit code 1."""
    try:
        yield
    except (OctavoError, OSError) as error:
        print(f"octavo: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
