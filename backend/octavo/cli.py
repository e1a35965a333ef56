"""The command line: `octavo generate` and `octavo bench`. Serving is the hosts' business."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octavo import bench as benchmark
from octavo import workloads
from octavo.config import EngineConfig
from octavo.errors import OctavoError
from octavo.llm import LLM
from octavo.progress import load_bar
from octavo.sampling_params import SamplingParams

_TABLE_COLUMNS = 150

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
        config = EngineConfig.from_mapping({"model": model, "dtype": dtype, "num_threads": threads})
        with load_bar() as show:
            results = benchmark.run(config, names, repeat, lambda stage, done, total: show(stage, done / total))
        console = Console()
        if not console.is_terminal:
            # Piped output has no width of its own; the table wants more than the usual 80 columns.
            console.width = _TABLE_COLUMNS
        console.print(benchmark.render(results))
        if json is not None:
            json.write_text(benchmark.to_json(results, config))


@contextmanager
def _one_clear_line() -> Iterator[None]:
    """Whatever the user got wrong is one line on stderr, and exit code 1."""
    try:
        yield
    except (OctavoError, OSError) as error:
        print(f"octavo: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
