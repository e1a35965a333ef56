"""What /embeddings, /score and /rerank answer. Runs the requests; knows no route and no field of a body."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import octavo
from octavo_kserve.embeddings.request import EmbeddingRequest, PoolingRequest, RerankRequest, ScoreRequest
from octavo_kserve.openai.generation import generate
from octavo_kserve.openai.spelling import spelled


async def embeddings(request: EmbeddingRequest) -> bytes:
    """The vectors in the prompts' order, as JSON: other clients have their turn between any two of them."""
    outputs = await _run(request.pooling)
    data = []
    for index, output in enumerate(outputs):
        vector = _base64(output) if request.in_base64 else _vector(output).tolist()
        data.append(json.dumps({"object": "embedding", "index": index, "embedding": vector}))
        await asyncio.sleep(0)
    envelope = _envelope(request.pooling, outputs) | {"object": "list", "data": []}
    head, tail = json.dumps(envelope).rsplit("[]", 1)
    return f"{head}[{','.join(data)}]{tail}".encode()


async def scores(request: ScoreRequest) -> dict[str, Any]:
    """How well the texts of each pair go together."""
    outputs = await _run(request.pooling)
    found = _compare(request, outputs)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(found)]
    return _envelope(request.pooling, outputs) | {"object": "list", "data": data}


async def ranking(request: RerankRequest) -> dict[str, Any]:
    """The documents that go best with the query, the best first; of two alike, the first."""
    outputs = await _run(request.scores.pooling)
    found = _compare(request.scores, outputs)
    best = sorted(range(len(found)), key=lambda i: -found[i])[: request.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": found[i]} for i in best]
    if request.returns_documents:
        for result in results:
            result["document"] = {"text": request.scores.texts[1 + result["index"]]}
    return _envelope(request.scores.pooling, outputs) | {"results": results}


async def _run(request: PoolingRequest) -> list[octavo.RequestOutput]:
    """The outputs in the prompts' order. Where one prompt fails, nothing goes on for the others."""
    with spelled(request.names):
        async with generate(request.call, request.prompts, request.params) as outputs:
            found = {i: output async for i, output in outputs}
    return [found[i] for i in range(len(request.prompts))]


def _envelope(request: PoolingRequest, outputs: Iterable[octavo.RequestOutput]) -> dict[str, Any]:
    num_tokens = sum(output.usage.num_prompt_tokens for output in outputs)
    return {
        "id": request.call.response_id,
        "created": int(time.time()),
        "model": request.call.model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _vector(output: octavo.RequestOutput) -> Any:
    assert output.embedding is not None
    return output.embedding


def _base64(output: octavo.RequestOutput) -> str:
    """fp32 in little endian, as the OpenAI API has it."""
    return base64.b64encode(_vector(output).astype("<f4").tobytes()).decode("ascii")


def _compare(request: ScoreRequest, outputs: Sequence[octavo.RequestOutput]) -> list[float]:
    """Of each pair the cross-encoder's score, or the cosine between the two vectors."""
    vectors = [_vector(output) for output in outputs]
    if request.pooling.call.served.engine.scores_pairs:
        return [float(vector[0]) for vector in vectors]
    return [octavo.cosine_similarity(vectors[left], vectors[right]) for left, right in request.pairs]
