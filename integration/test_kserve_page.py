"""The page as people use it: headless Chromium against real servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import Page, open_browser
from kserve_server import KServeServer, fake_arguments

from octavo.testing import make_fake_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(chromium.MISSING), reason=chromium.MISSING)]

MARKUP = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>&amp;"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServeServer]:
    """A model with two names, one without a chat template, one whose template begins with its reasoning, and two that
    make vectors, with a template and without."""
    folder = tmp_path_factory.mktemp("server")
    (make_fake_model(folder / "plain") / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    thinks = make_fake_model(folder / "thinks") / "tokenizer_config.json"
    thinks.write_text(thinks.read_text().replace("a: {% endif %}", "a: <think>{% endif %}"))
    more_models = {
        "plain": {"model": "plain"},
        "thinks": {"model": "thinks", "reasoning_parser": "qwen3"},
        "vectors": {"model": "plain", "runner": "pooling"},
        "templated": {"model": "thinks", "runner": "pooling"},
    }
    (folder / "models.json").write_text(json.dumps(more_models))
    more = ["--served_model_name", "alias", "--models", str(folder / "models.json")]
    with KServeServer(folder / "log", *fake_arguments(folder), *more) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """One for all tests, each of which has a tab of its own."""
    with open_browser("about:blank") as browser:
        yield browser


@pytest.fixture
def page(browser: Page, server: KServeServer) -> Iterator[Page]:
    """The page of that server, loaded and ready."""
    with browser.new_tab(server.url) as page:
        page.open()
        page.wait_state("ready")
        page.wait(lambda: "fake" in page.text("#model option"))
        yield page


def num_curves(page: Page) -> int:
    """Curves of more than one point."""
    return int(
        page.run(
            "return [...document.querySelectorAll('.plot .line')].filter((l) => /L/.test(l.getAttribute('d'))).length"
        )
    )


def color(page: Page, selector: str = "body") -> str:
    return str(page.run("return getComputedStyle(document.querySelector(arguments[0])).backgroundColor", selector))


def test_an_answer_of_the_embedded_model_grows_to_what_the_route_gives(browser: Page, tmp_path: Path) -> None:
    question = "Write a long story about a fox."
    params = {"temperature": 0, "seed": 7, "max_tokens": 160, "top_p": 1}
    messages = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": question}]
    with KServeServer(tmp_path / "log", "--model_name", "smollm2") as server, browser.new_tab(server.url) as page:
        page.open()
        page.wait_state("ready")
        page.set_settings(system="You tell stories.", **params)
        page.chat(question)
        early = page.wait(lambda: page.text(".text > p"))
        later = page.wait(lambda: page.text(".text > p") != early and page.text(".text > p"))
        page.wait_idle()
        status, whole = server.post("/v1/chat/completions", {"model": "smollm2", "messages": messages, **params})
        assert status == 200
        text = page.text(".text > p")
        assert text == whole["choices"][0]["message"]["content"].strip()
        assert text.startswith(later) and later.startswith(early) and len(early) < len(later) < len(text)
        figures = page.text(".figures span")
        assert f"{whole['usage']['completion_tokens']} tokens" in figures.splitlines()
        assert re.search(r"^[\d.]+ tokens/s$", figures, re.MULTILINE)
        assert re.search(r"^first token \d+ ms$", figures, re.MULTILINE)
        assert page.console() == []


def test_the_page_comes_from_the_server_alone_and_the_browser_complains_of_nothing(
    page: Page, server: KServeServer
) -> None:
    page.chat("hello")
    page.wait_idle()
    names = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(names) > 15
    assert [name for name in names if not name.startswith(server.url + "/")] == []
    assert page.console() == []


def test_stop_ends_the_request_on_the_server(page: Page, server: KServeServer) -> None:
    def cancelled() -> float:
        return server.metric("octavo:request_finished_total", finished_reason="cancelled", model_name="fake")

    before = cancelled()
    page.set_settings(max_tokens=40_000)
    page.chat("go on and on")
    page.wait(lambda: server.metric("vllm:num_requests_running", model_name="fake") == 1)
    page.find("#stop").click()
    server.wait_until(lambda: server.metric("vllm:num_requests_running", model_name="fake") == 0)
    assert cancelled() == before + 1
    page.wait_idle()
    assert "stopped" in page.text(".figures span").splitlines()
    assert page.text(".error") == ""


def test_a_chat_goes_on_and_its_last_answer_can_be_made_anew(page: Page, server: KServeServer) -> None:
    def prompt_tokens() -> list[int]:
        return [int(number) for number in re.findall(r"^prompt (\d+)", page.text(".figures span"), re.MULTILINE)]

    page.set_settings(max_tokens=20, seed=3)
    for question in ("one", "two"):
        page.chat(question)
        page.wait_idle()
    first, second = prompt_tokens()
    assert second > first + 20
    assert len(page.driver.find_elements("css selector", ".again")) == 1
    before = page.text(".answer .text").splitlines()
    page.find(".again").click()
    page.wait_idle()
    assert page.text(".answer .text").splitlines() == before
    assert prompt_tokens() == [first, second]
    page.find("#new-chat").click()
    assert page.text("#turns") == "" and page.find("#welcome").is_displayed()
    page.chat("one")
    page.wait_idle()
    assert prompt_tokens() == [first]


def test_charts_show_what_the_metrics_say(page: Page, server: KServeServer) -> None:
    page.wait(lambda: num_curves(page) == 5)
    page.set_settings(max_tokens=800)
    page.chat("hello")
    page.wait(lambda: "running 1" in page.text(".chart figcaption"))
    page.wait_idle()
    page.wait(lambda: "running 0" in page.text(".chart figcaption"))
    tokens = next(line for line in page.text(".figures span").splitlines() if line.endswith(" tokens")).split()[0]
    page.wait(lambda: page.text("#summary div:nth-child(5) dd") == tokens)
    assert page.text("#summary div:nth-child(4) dd") == "1"
    assert page.text("#summary div:first-child dd").endswith("ms")
    page.run(
        "const plot = document.querySelector('.plot');"
        "plot.dispatchEvent(new PointerEvent('pointermove', {clientX: plot.getBoundingClientRect().right - 15}));"
    )
    assert re.fullmatch(r"\d+ s ago", page.text(".chart:first-child .when"))
    assert page.find(".plot .cursor")


def test_a_hidden_tab_asks_nothing_and_one_that_is_shown_again_asks_at_once(page: Page) -> None:
    def hide(hidden: bool) -> None:
        page.run(
            "const [hidden] = arguments;"
            "Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });"
            "document.dispatchEvent(new Event('visibilitychange'));",
            hidden,
        )

    num_asked = "return performance.getEntriesByType('resource').filter((entry) => /metrics$/.test(entry.name)).length"
    page.wait(lambda: page.run(num_asked) > 1)
    hide(True)
    # What is under way may end; then three times the interval.
    asked = page.driver.execute_async_script(
        f"const [done] = arguments, count = () => {{ {num_asked} }};"
        "setTimeout(() => { const before = count(); setTimeout(() => done([before, count()]), 3000); }, 500);",
    )
    assert asked[0] == asked[1]
    hide(False)
    page.wait(lambda: page.run(num_asked) > asked[1])


def test_markup_in_questions_and_answers_stays_text(page: Page) -> None:
    page.chat(MARKUP)
    page.wait_idle()
    assert page.text(".question").endswith(MARKUP)
    shown = page.driver.execute_async_script(
        "const [text, done] = arguments; import('./ui/answer.js').then(({ Answer }) => {"
        "  const answer = new Answer(text, text); document.body.append(answer.node);"
        "  answer.show({ text: [text, '```', text, '```'].join('\\n'), tokens: 1, firstTokenMs: 1 });"
        "  answer.end({ text }, new Error(text));"
        "  done([...answer.text.children].map((node) => [node.tagName, node.textContent]));"
        "});",
        MARKUP,
    )
    assert shown == [["P", MARKUP], ["PRE", MARKUP], ["P", f"{MARKUP} "]]
    assert page.run("return document.querySelectorAll('main img, main script, .pair img, .pair script').length") == 0
    assert "broken" not in page.driver.title
    # The policy would stop even our own mistakes.
    with pytest.raises(Exception, match="TrustedHTML"):
        page.run("document.body.innerHTML = arguments[0]", MARKUP)


def test_dark_and_light_follow_the_system_until_they_are_chosen(page: Page) -> None:
    page.prefer("light")
    light = color(page)
    page.prefer("dark")
    dark = color(page)
    assert light != dark
    page.find("#theme").click()
    assert color(page) == light
    page.open("/ui")
    assert color(page) == light
    page.find("#theme").click()
    page.prefer("light")
    assert color(page) == dark


def test_every_name_can_be_picked_and_a_model_without_a_template_completes(page: Page) -> None:
    options = [option.text for option in page.find("#model").find_elements("css selector", "option")]
    assert options == ["fake", "alias", "plain", "thinks", "vectors", "templated"]
    assert "50,000 tokens" in page.text("#context")

    def pick(name: str) -> None:
        page.find(f"#model option[value={name}]").click()
        page.wait(lambda: page.text("#welcome-model") == name)

    pick("alias")
    assert "v1/chat/completions" in page.text("#call-code") and '"model": "alias"' in page.text("#call-code")
    pick("plain")
    assert "no chat template" in page.text("#welcome-text")
    assert "v1/completions" in page.text("#call-code")
    page.chat("hello")
    page.wait_idle()
    assert "prompt 5" in page.text(".figures span").splitlines()
    assert page.text(".error") == ""


def test_reasoning_is_folded_away_above_the_answer(page: Page, server: KServeServer) -> None:
    page.find("#model option[value=thinks]").click()
    page.wait(lambda: page.text("#welcome-model") == "thinks")
    page.set_settings(temperature=0, seed=5, max_tokens=30)
    page.chat("hello")
    page.wait_idle()
    assert page.text(".reasoning summary") == "Reasoning"
    assert page.text(".text") == "(no text)"
    page.find(".reasoning summary").click()
    asked = {"model": "thinks", "temperature": 0, "seed": 5, "max_tokens": 30}
    status, whole = server.post("/v1/chat/completions", asked | {"messages": [{"role": "user", "content": "hello"}]})
    message = whole["choices"][0]["message"]
    assert status == 200 and not message["content"]
    shown = page.run("return document.querySelector('.reasoning p').textContent")
    assert shown == message["reasoning_content"].strip() != ""


def test_models_that_come_and_go_are_seen_without_a_reload(page: Page, server: KServeServer) -> None:
    def change(verb: str) -> int:
        return server.post(f"/v2/repository/models/plain/{verb}", {})[0]

    def names() -> list[str]:
        return page.text("#model option").splitlines()

    assert "plain" in names()
    try:
        assert change("unload") == 200
        page.wait(lambda: names() == ["fake", "alias", "thinks", "vectors", "templated"])
    finally:
        assert change("load") == 200
    page.wait(lambda: names() == ["fake", "alias", "thinks", "vectors", "templated", "plain"])


def test_a_model_that_makes_vectors_compares_texts_instead(page: Page, server: KServeServer) -> None:
    page.find("#model option[value=vectors]").click()
    page.wait(lambda: page.find("#compare").is_displayed())
    assert not page.find("#composer").is_displayed() and "writes no text" in page.text("#compare-text")
    head, _, body = page.text("#call-code").partition("-d ")
    assert "v1/embeddings" in head and server.post("/v1/embeddings", json.loads(body.strip("'")))[0] == 200
    page.find("#compare .primary").click()
    page.wait(lambda: page.text("#ranking"))
    query, *documents = page.run("return [...document.querySelectorAll('#compare textarea')].map((t) => t.value)")
    asked = {"model": "vectors", "query": query, "documents": documents[0].split("\n")}
    results = server.post("/v1/rerank", asked)[1]["results"]
    shown = [f"{each['relevance_score']:.3f}{each['document']['text']}" for each in results]
    assert len(shown) == 2 and page.text("#ranking li").splitlines() == shown
    page.find("#model option[value=fake]").click()
    page.wait(lambda: page.find("#composer").is_displayed())
    assert not page.find("#compare").is_displayed()


def test_a_model_with_a_template_that_refuses_to_write_compares_texts_then(page: Page) -> None:
    page.find("#model option[value=templated]").click()
    page.wait(lambda: page.text("#welcome-model") == "templated")
    page.chat("hello")
    page.wait(lambda: page.find("#compare").is_displayed())
    assert page.text("#compare-model") == "templated"


@pytest.mark.parametrize("language", ["curl", "v2"])
def test_the_lines_to_copy_work(page: Page, server: KServeServer, language: str) -> None:
    next(tab for tab in page.driver.find_elements("css selector", ".tab") if tab.text == language).click()
    head, _, body = page.text("#call-code").partition("-d ")
    url = re.search(r"http\S+", head)
    assert url is not None and url[0].startswith(server.url)
    *_, last = server.events(url[0].removeprefix(server.url), json.loads(body.strip("'")) | {"max_tokens": 4})
    assert last == "[DONE]" or last["model_name"] == "fake"


def test_an_error_is_told_in_the_servers_words_with_what_to_do(page: Page) -> None:
    page.set_settings(max_tokens=10, seed=10**20)
    page.chat("hello")
    page.wait_idle()
    assert page.text(".error").startswith("seed: ") and "Settings" in page.text(".advice")
    page.set_settings(seed=1)
    page.find(".again").click()
    page.wait_idle()
    assert page.text(".error") == "" and "10 tokens" in page.text(".figures span")


def test_a_setting_out_of_range_is_shown_before_anything_is_sent(page: Page) -> None:
    page.set_settings(temperature=5)
    page.chat("hello")
    page.wait(lambda: page.find("#settings [name=temperature]").is_displayed())
    assert page.text("#turns") == ""
    assert page.run("return document.activeElement.name") == "temperature"


def test_on_a_phone_nothing_is_cut_off_and_the_server_is_one_tap_away(page: Page) -> None:
    page.resize(390, 844)
    assert page.run("return document.documentElement.scrollWidth") == 390
    assert page.find("#question").is_displayed() and not page.find("#charts").is_displayed()
    page.find("[data-show=panel]").click()
    assert page.find("#charts").is_displayed() and not page.find("#question").is_displayed()
    page.wait(lambda: num_curves(page) == 5)
    assert page.run("return document.documentElement.scrollWidth") == 390


def test_a_key_is_asked_for_and_sent_and_a_wrong_one_is_told(browser: Page, tmp_path: Path) -> None:
    def enter(key: str) -> None:
        page.wait(lambda: page.find("#key-dialog").is_displayed())
        page.find("#key").send_keys(key)
        page.find("#key-dialog button").click()

    environment = {"OCTAVO_API_KEYS": "secret"}
    with (
        KServeServer(tmp_path / "log", *fake_arguments(tmp_path), environment=environment) as server,
        browser.new_tab(server.url) as page,
    ):
        page.open()
        enter("wrong")
        page.wait(lambda: "does not know that key" in page.text("#key-note"))
        enter("secret")
        page.wait(lambda: num_curves(page) == 5)
        page.chat("hello")
        page.wait_idle()
        assert page.text(".error") == "" and "tokens" in page.text(".figures span")
        assert "Bearer $OCTAVO_API_KEY" in page.text("#call-code") and "secret" not in page.text("body")
        page.open("/ui")
        page.wait(lambda: num_curves(page) == 5)
        assert not page.find("#key-dialog").is_displayed()
        assert page.run("return localStorage.length + document.cookie.length") == 0


def test_a_server_that_goes_away_is_told_and_the_page_goes_on_when_it_is_back(browser: Page, tmp_path: Path) -> None:
    def generated() -> Any:
        return page.text(".chart:first-child .value")

    arguments = [*fake_arguments(tmp_path), "--drain_timeout_s=0.2"]
    with KServeServer(tmp_path / "log", *arguments) as server, browser.new_tab(server.url) as page:
        page.open()
        page.wait_state("ready")
        page.wait(lambda: num_curves(page) == 5)
        page.set_settings(max_tokens=40_000)
        page.chat("go on")
        page.wait(lambda: page.text(".text > p"))
        server.stop()
        page.wait_state("unreachable")
        page.wait_idle()
        assert page.text(".error")
        assert page.text(".text > p")
        assert "no answer" in page.text("#live-note")
        server.start()
        page.wait_state("ready")
        page.wait(lambda: "2 minutes" in page.text("#live-note"))
        page.set_settings(max_tokens=20)
        page.find(".again").click()
        page.wait_idle()
        assert page.text(".error") == "" and "20 tokens" in page.text(".figures span")
        assert re.fullmatch(r"[\d.]+", generated())
