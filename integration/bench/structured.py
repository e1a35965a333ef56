"""What structured output costs: tokens/s of streams that all follow a JSON schema, against others without, in one run.

    python integration/bench/structured.py [--num-streams 16] [--num-tokens 128] [--rounds 5]

Rounds of both kinds take turns, so that a machine that is busy for a while is so for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from octavo import LLM, SamplingParams

SCHEMA = {
    "type": "array",
    # More than fit into any answer: no stream ends early.
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"type": "string", "format": "email"},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4},
        },
        "required": ["name", "age", "email", "tags"],
        "additionalProperties": False,
    },
}


def tokens_per_second(llm: LLM, num_streams: int, params: SamplingParams) -> float:
    """Of one batch, from its first step to its last."""
    prompts = [f"{number} people as a JSON array: " for number in range(2, 2 + num_streams)]
    began_at = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    took_s = time.perf_counter() - began_at
    num_tokens = sum(output.usage.num_output_tokens for output in outputs)
    assert num_tokens == num_streams * (params.max_tokens or 0), "a stream ended early"
    return num_tokens / took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--num-streams", type=int, default=16)
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    llm = LLM(options.model)
    shared = {"temperature": options.temperature, "seed": 1, "max_tokens": options.num_tokens, "ignore_eos": True}
    plain = SamplingParams.from_mapping(shared)
    structured = SamplingParams.from_mapping({**shared, "structured_outputs": {"json": json.dumps(SCHEMA)}})
    found: dict[str, list[float]] = {"without": [], "with": []}
    for warm_up in (plain, structured):
        tokens_per_second(llm, options.num_streams, warm_up)
    for _ in range(options.rounds):
        found["without"].append(tokens_per_second(llm, options.num_streams, plain))
        found["with"].append(tokens_per_second(llm, options.num_streams, structured))
    for name, rates in found.items():
        print(f"{name:8} {statistics.median(rates):7.1f} tokens/s  (rounds: {', '.join(f'{r:.1f}' for r in rates)})")
    ratios = [w / wo for w, wo in zip(found["with"], found["without"], strict=True)]
    print(f"with / without: {statistics.median(ratios):.3f} (median of the rounds' own ratios)")


if __name__ == "__main__":
    main()
