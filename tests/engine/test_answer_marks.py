"""Special tokens that an answer shows because its prompt says so, whichever way it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine.conftest import FAKE_EXECUTOR, StartEngine

from octavo import LLM, ChatPrompt, RequestOutput, SamplingParams
from octavo.structured_outputs import StructuredOutputs

MESSAGES = [{"role": "user", "content": "hi"}]
# Nothing but this text, in which a token is special, and then EOS, which is too.
GRAMMAR = StructuredOutputs("grammar", 'start: "a" <[257]> "b"')
PARAMS = SamplingParams(max_tokens=9, structured_outputs=GRAMMAR)
MARK = "<bos>"

Ask = Callable[[ChatPrompt], RequestOutput]


@pytest.fixture(params=["llm", "stream"])
def ask(request: pytest.FixtureRequest, long_model: Path, start_engine: StartEngine) -> Ask:
    if request.param == "llm":
        llm = LLM(str(long_model), executor=FAKE_EXECUTOR, num_gpu_blocks_override=20_000)
        return lambda prompt: llm.generate([prompt], PARAMS, use_tqdm=False)[0]
    engine = start_engine()

    def streamed(prompt: ChatPrompt) -> RequestOutput:
        first, *rest = engine.submit(prompt, PARAMS)
        for output in rest:
            first.extend(output)
        return first

    return streamed


def test_a_mark_is_shown_where_other_special_tokens_are_not(ask: Ask) -> None:
    (plain,), (marked,) = ask(ChatPrompt(MESSAGES)).outputs, ask(ChatPrompt(MESSAGES, marks=[MARK])).outputs
    assert plain.token_ids[:3] == marked.token_ids[:3] == [97, 257, 98]
    assert (plain.text, marked.text) == ("ab", f"a{MARK}b")
