"""Stage 1d: the engine on the device, graphs and all, against the engine on the CPU in fp32 with the same small model.

Whatever the device chose, the CPU is asked what it thinks of it: how likely each token was, and for greedy ones how far
behind the best. So a near tie that is decided otherwise is no error, and a wrong number anywhere is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from gpu_model import engine_config, stream_kept
from gpu_shapes import LLAMA_8B, TINY
from gpu_timing import Bench, Row
from runner.fake_device import FakeDevice
from torch import Tensor

from octavo.engine import Engine
from octavo.models.llama import LlamaForCausalLM
from octavo.models.weights import ShapeSource
from octavo.request import EngineRequest
from octavo.runner import create_executor_for, layout_of
from octavo.runner.device_start import start_on_device
from octavo.sampling_params import SamplingParams

CPU = torch.device("cpu")
SMALL = LLAMA_8B | {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 3000, "max_position_embeddings": 2048,
}  # fmt: skip
# In logarithms of probabilities: what roundings in this type come to in a model of four layers.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.1}
# Fewer rows and tokens a step than the requests have: chunked prompts, mixed steps, a queue.
SETTINGS = {"max_model_len": 1024, "max_num_seqs": 8, "max_num_batched_tokens": 128, "num_gpu_blocks_override": 400}
DRY_SETTINGS = SETTINGS | {
    "max_model_len": 128,
    "max_num_batched_tokens": 32,
    "max_num_seqs": 2,
    "num_gpu_blocks_override": 40,
}


class SeededWeights(ShapeSource):
    """The same numbers for every device, rounded to `rounded`, then in `dtype`."""

    def __init__(self, rounded: torch.dtype, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype)
        self._rounded = rounded
        self._device = device
        self._generator = torch.Generator().manual_seed(0)

    def take(self, name: str, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=self._generator)
        numbers = 1 + 0.1 * numbers if len(shape) == 1 else numbers * shape[-1] ** -0.5
        return numbers.to(self._rounded).to(self._dtype).to(self._device)


@dataclass(slots=True)
class Completion:
    """What one request got: tokens, and the logarithm of each one's probability."""

    prompt: list[int]
    params: SamplingParams
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def run(bench: Bench) -> Iterator[Row]:
    for dtype in bench.pick((torch.bfloat16, torch.float32), [torch.float32]):
        label = {"operation": "the engine", "case": str(dtype).removeprefix("torch.")}
        yield bench.guarded(label, lambda d=dtype: check(bench, d))


def check(bench: Bench, dtype: torch.dtype) -> Row:
    with stream_kept(bench):
        engine = small_engine(bench, (dtype, dtype), bench.device)
        while engine.make_ready():
            pass
        found = completed(engine, requests(bench.is_dry))
        fallbacks = engine.stats().fallbacks_total
        waits = host_waits(engine, bench.is_dry)
        engine.shutdown()
    reference = small_engine(bench, (dtype, torch.float32), None)
    errors = [error for completion in found for error in judged(reference, completion)]
    reference.shutdown()
    worst, tolerance = max(errors), TOLERANCE[dtype]
    # What is not a number is never close.
    passed = all(error <= tolerance for error in errors) and waits == "none"
    checked = {"passed": passed, "largest_error": worst, "atol": tolerance, "rtol": 0.0, "host_waits": waits}
    return checked | {"tokens": sum(len(completion.token_ids) for completion in found), "fallbacks": fallbacks}


def host_waits(engine: Engine, is_dry: bool) -> str:
    """The first operation of torch's, if any, that makes the host wait for the device on the way of a step.

    The requests once more, on an engine that has compiled and captured all. In a dry run the fake device refuses them.
    """
    if not is_dry:
        torch.cuda.set_sync_debug_mode("error")
    try:
        completed(engine, requests(is_dry))
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        if not is_dry:
            torch.cuda.set_sync_debug_mode("default")
    return "none"


def small_engine(bench: Bench, types: tuple[torch.dtype, torch.dtype], device: torch.device | None) -> Engine:
    """types: what weights are rounded to, and what is computed in. device: None for the reference.

    In a dry run a fake device, which is as late as a GPU, runs the GPU's runner in the interpreter.
    """
    weights = SeededWeights(*types, device or CPU)
    spec = LlamaForCausalLM.read_spec(TINY if bench.is_dry else SMALL)
    model = LlamaForCausalLM(spec, weights)
    settings = DRY_SETTINGS if bench.is_dry else SETTINGS
    config = engine_config(bench, **settings, device=(device or CPU).type)
    if bench.is_dry and device is not None:
        layout = layout_of(spec, config, types[1])
        return Engine(config, start_on_device(model, layout, config, FakeDevice(), lambda phase, fraction: None))
    return Engine(config, create_executor_for(model, config, device or CPU, types[1]))


def requests(is_dry: bool) -> list[Completion]:
    """Greedy ones and drawn ones, short and long, some with a beginning in common."""
    rng = Random(0)
    vocab_size = (TINY if is_dry else SMALL)["vocab_size"]
    lengths = [1, 40] if is_dry else [1, 2, 15, 16, 17, 100, 127, 128, 129, 300, 500, 513, 700, 5, 6, 7]
    prompts = [rng.choices(range(vocab_size), k=length) for length in lengths]
    prompts += [[*prompts[-1], 1, 2], [*prompts[-1][:40], 3]]
    drawn = {"temperature": 1.0, "logprobs": 0, "max_tokens": 4 if is_dry else 40}
    greedy = drawn | {"temperature": 0.0}
    return [Completion(prompt, SamplingParams(**(drawn if i % 3 else greedy))) for i, prompt in enumerate(prompts)]


def completed(engine: Engine, completions: Sequence[Completion]) -> Sequence[Completion]:
    """The same, filled. All at once."""
    for i, each in enumerate(completions):
        request = EngineRequest(request_id=str(i), prompt_token_ids=each.prompt, params=each.params, seed=i)
        engine.add_request(request)
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise RuntimeError(output.error)
            into = completions[int(output.request_id)]
            into.token_ids += output.token_ids
            into.logprobs += [position[0].logprob for position in output.logprobs or []]
    return completions


def judged(reference: Engine, completion: Completion) -> list[float]:
    """Each token's error: of its logarithm, and of a greedy one how far it is behind the best as well."""
    prompt, num_tokens = completion.prompt + completion.token_ids, len(completion.token_ids)
    if not num_tokens == len(completion.logprobs) == completion.params.max_tokens:
        raise RuntimeError(f"{num_tokens} tokens came, with {len(completion.logprobs)} logprobs")
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    reference.add_request(EngineRequest(request_id="judged", prompt_token_ids=prompt, params=params, seed=0))
    seen = []
    while reference.has_work:
        seen += [output.prompt_logprobs for output in reference.step() if output.prompt_logprobs is not None]
    errors = []
    for position, logprob in zip(seen[0][-num_tokens:], completion.logprobs, strict=True):
        error = abs(position[0].logprob - logprob)
        if completion.params.greedy:
            error = max(error, max(candidate.logprob for candidate in position) - position[0].logprob)
        errors.append(error)
    return errors
