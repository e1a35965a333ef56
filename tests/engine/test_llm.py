"""LLM over the fake executor: offline batches in order, each ended once, wrong ones refused before any runs."""

from __future__ import annotations

import pytest

from octavo import LLM, FinishReason, InvalidRequest, ModelLoadError, PromptTooLong, SamplingParams
from octavo.sampling_params import child_seed
from octavo.testing import fake_token

FAKE = "octavo.testing:create_fake_executor"


@pytest.fixture
def llm(fake_model):
    return LLM(str(fake_model), executor=FAKE)


def expected(prompt: str, count: int, seed: int = 1, index: int = 0) -> str:
    known = list(prompt.encode())
    for _ in range(count):
        known.append(fake_token(known, child_seed(seed, index)))
    return bytes(known[len(prompt.encode()) :]).decode()


def test_results_are_in_the_prompts_order(llm):
    prompts = [f"prompt {i}" * (i + 1) for i in range(20)]
    params = [SamplingParams(seed=1, max_tokens=30 - i) for i in range(20)]
    results = llm.generate(prompts, params)
    assert [result.prompt for result in results] == prompts
    for i, result in enumerate(results):
        assert result.prompt_token_ids == list(prompts[i].encode())
        assert result.outputs[0].text == expected(prompts[i], 30 - i)
        assert len(result.outputs[0].token_ids) == result.usage.num_output_tokens == 30 - i
        assert result.finished
        assert result.outputs[0].finish_reason is FinishReason.LENGTH


def test_a_prompt_may_be_a_text_or_token_ids_alone_or_in_a_list(llm):
    params = SamplingParams(seed=1, max_tokens=5)
    forms = ["abc", ["abc"], [97, 98, 99], [[97, 98, 99]]]
    assert {llm.generate(form, params)[0].outputs[0].text for form in forms} == {expected("abc", 5)}
    assert llm.generate([]) == []


def test_n_logprobs_and_stop_strings(llm):
    text = expected("abc", 40)
    stop = text[20:23]
    params = SamplingParams(seed=1, max_tokens=40, n=3, logprobs=1, stop=stop)
    outputs = llm.generate("abc", params)[0].outputs
    assert [output.index for output in outputs] == [0, 1, 2]
    assert outputs[0].text == text[: text.index(stop)]
    assert (outputs[0].finish_reason, outputs[0].stop_reason) == (FinishReason.STOP, stop)
    assert len(outputs[1].logprobs) == len(outputs[1].token_ids) == 40
    assert outputs[1].text == expected("abc", 40, index=1)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_chat_renders_the_models_template(llm):
    messages = [{"role": "user", "content": "hi"}]
    params = SamplingParams(seed=1, max_tokens=4)
    one = llm.chat(messages, params)
    many = llm.chat([messages, messages], params)
    assert one[0].prompt == "user: hi\na: "
    assert [result.outputs[0].text for result in many] == [one[0].outputs[0].text] * 2


def test_a_stream_concatenates_to_the_whole_and_may_be_left(llm):
    params = SamplingParams(seed=1, max_tokens=12)
    deltas = [output.outputs[0].text for output in llm.stream("abc", params)]
    assert len(deltas) > 1
    assert "".join(deltas) == expected("abc", 12)
    for _ in llm.stream("abc", params):
        break
    assert not llm.engine.has_work
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_one_wrong_request_is_refused_before_any_runs(llm):
    with pytest.raises(PromptTooLong, match=r"2000 tokens.*1024"):
        llm.generate(["fine", "x" * 2000])
    with pytest.raises(InvalidRequest, match="sampling_params"):
        llm.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(InvalidRequest, match="prompt"):
        llm.generate([""])
    with pytest.raises(InvalidRequest, match="prompts"):
        llm.generate(5)
    assert llm.stats().steps_total == 0
    assert not llm.engine.has_work


def test_bad_engine_arguments_are_named(fake_model):
    with pytest.raises(ModelLoadError, match="max_model_length"):
        LLM(str(fake_model), executor=FAKE, max_model_length=5)
    with pytest.raises(ModelLoadError, match=r"max_model_len: 4096.*1024"):
        LLM(str(fake_model), executor=FAKE, max_model_len=4096)
    with pytest.raises(ModelLoadError, match="no such model"):
        LLM("/no/such/model", executor=FAKE)


def test_a_grammar_that_cannot_be_followed_refuses_its_batch_before_anything_runs(llm):
    params = [SamplingParams.from_mapping({"max_tokens": 9, "guided_regex": regex}) for regex in ("a{5}", "(", "b{5}")]
    with pytest.raises(InvalidRequest, match=r"^guided_regex: '\('"):
        llm.generate(["x"] * 3, params)
    assert llm.stats().steps_total == 0
    assert [result.outputs[0].text for result in llm.generate(["x"] * 2, params[::2])] == ["aaaaa", "bbbbb"]
    llm.engine.shutdown()


def test_a_grammar_that_is_refused_later_ends_its_own_request_alone(llm, monkeypatch):
    """The verdict may have been forgotten, and the grammar been tried again."""
    monkeypatch.setattr(llm.engine.gate, "check", lambda asked: None)
    params = [SamplingParams.from_mapping({"max_tokens": 9, "guided_regex": regex}) for regex in ("a{5}", "(")]
    whole, refused = llm.generate(["x"] * 2, params)
    assert whole.outputs[0].text == "aaaaa"
    assert refused.outputs[0].finish_reason is FinishReason.REJECTED
    assert refused.error.startswith("guided_regex: '(' is not allowed")
    llm.engine.shutdown()
