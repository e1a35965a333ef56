"""The comparison with other engines, as far as it needs none of them: ratios, verdicts, arrivals, who is missing."""

import hashlib
import io
import json
import threading
from argparse import Namespace
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter

import pytest

pytest.importorskip("pycurl")
pytest.importorskip("matplotlib")

BENCH = Path(__file__).resolve().parents[2] / "integration/bench"
# SHA-256 of the JSON list of [seconds, token ids, output tokens] that the performance specification gives W5.
W5_DIGEST = "8e93c34e451590e082eb3b63fc09cd92958ceb240f39ddf9bde1caa171fc95e9"
# An engine that makes the tokens 0, 1, 2, ...
ADAPTER = """
import sys
sys.path.insert(0, {adapters!r})
from lines import Collector, serve

class Counting:
    version = "1.2"
    def __init__(self, settings): print("noise", settings["threads"])
    def prepare(self, items): pass
    def run(self, items):
        collector = Collector(items)
        for i, item in enumerate(items):
            for token_id in range(item.num_output_tokens - {lost}):
                collector.add(i, [token_id])
        return collector.outcome()
    def close(self): pass

serve(Counting)
"""


@pytest.fixture(autouse=True)
def _bench_modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.syspath_prepend(BENCH / "peer_adapters")


@pytest.fixture
def results():
    """A function: figures by contestant, one a round, of one metric."""
    from peer_report import Results, Run

    def make(workload, metric, **by_name):
        runs = [
            Run(name.replace("_", "-"), workload, i, {metric: value})
            for name, values in by_name.items()
            for i, value in enumerate(values)
        ]
        return Results(runs)

    return make


def only_ratio(results):
    from peer_report import ratios

    [found] = ratios(results)
    return found


def test_a_ratio_is_the_median_of_the_rounds_against_the_peer_with_the_best_median(results):
    seen = results("W2", "output_tok_s", octavo=(300, 360, 390), vllm=(250, 300, 300), llama=(100, 900, 100))
    found = only_ratio(seen)
    assert (found.peer, found.verdict) == ("vllm", "met")
    assert (found.ratio.median, found.ratio.low, found.ratio.high) == (1.2, 1.2, 1.3)


def test_of_times_the_shortest_is_the_best(results):
    found = only_ratio(results("W4", "ttft_ms", octavo=(200,), vllm=(160,), openvino=(100,)))
    assert (found.peer, found.ratio.median, found.verdict) == ("openvino", 2.0, "missed")


def test_only_rounds_that_both_finished_are_compared(results):
    for ours, theirs in (((300, 100), (200,)), ((300,), (200, 400))):
        found = only_ratio(results("W2", "output_tok_s", octavo=ours, vllm=theirs))
        assert (found.ratio.median, found.ratio.high) == (1.5, 1.5)


def test_like_is_compared_with_like(results):
    seen = results("W1", "itl_ms", octavo=(10,), octavo_4bit=(6,), llama=(12,), llama_4bit=(8,), openvino_4bit=(3,))
    from peer_report import ratios

    found = [(ratio.ours, ratio.peer, ratio.verdict) for ratio in ratios(seen)]
    # The target in 4 bits is about the same file, which only one of the peers reads.
    assert found == [("octavo", "llama", "met"), ("octavo-4bit", "llama-4bit", "met")]


def test_the_online_targets_are_about_one_peer_and_are_not_judged_without_it(results):
    servers = {"octavo_kserve": (40,), "llama_server": (20,)}
    alone = only_ratio(results("W5", "itl_p99_ms", **servers))
    assert (alone.peer, alone.ratio.median, alone.verdict) == ("llama-server", 2.0, "not judged")
    both = only_ratio(results("W5", "itl_p99_ms", **servers, vllm_server=(80,)))
    assert (both.peer, both.ratio.median, both.verdict) == ("vllm-server", 0.5, "met")


@pytest.mark.parametrize(("seconds", "verdict"), [(4.9, "met"), (5.1, "missed")])
def test_the_start_has_a_limit_of_its_own(results, seconds, verdict):
    alone = only_ratio(results("start", "first_token_s", octavo=(seconds,)))
    assert (alone.peer, alone.verdict) == (None, verdict)
    assert only_ratio(results("start", "first_token_s", octavo=(seconds,), llama=(1,))).verdict == verdict


def test_a_peer_that_computes_something_else_is_no_peer(results):
    from peer_report import agreements, differing

    seen = results("W2", "output_tok_s", octavo=(300,), vllm=(200,), openvino=(250,), transformers=(30,))
    seen.token_ids = {
        "octavo": {"W1": [[1, 2, 3]], "W2": [[5], [6], [7], [8]]},
        "vllm": {"W1": [[1, 2, 4]], "W2": [[5], [-1], [7], [9]]},
        "openvino": {"W1": [[9, 2, 3]]},
        "transformers": {"W2": [[5], [], [], []]},
    }
    found = agreements(seen)
    assert (found["vllm"].common_prefix, found["vllm"].num_tokens, found["vllm"].first_tokens) == (2, 3, 2 / 3)
    assert (found["transformers"].common_prefix, found["transformers"].first_tokens) == (None, 1.0)
    assert differing(seen) == ["openvino"]
    assert only_ratio(seen).peer == "vllm"


def test_figures_of_what_an_adapter_has_answered():
    from peer_report import figures_of

    answer = {"wall_s": 2.0, "token_ids": [[1, 2, 3]], "ttft_s": [0.5], "itl_s": [0.1, 0.3]}
    found = figures_of("W1", answer, num_prompt_tokens=7)
    expected = {"wall_s": 2.0, "ttft_ms": 500, "itl_ms": 200, "output_tok_s": 1.5, "total_tok_s": 5.0}
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="no token"):
        figures_of("W2", answer | {"token_ids": [[]]}, 7)


def test_the_arrivals_are_those_of_the_specification_and_equal_for_all():
    from peer_arrivals import arrivals

    triples = [(a.at_s, a.item.prompt_token_ids, a.item.num_output_tokens) for a in arrivals("W5")]
    assert hashlib.sha256(json.dumps(triples).encode()).hexdigest() == W5_DIGEST
    assert arrivals("W5") == arrivals("W5") and arrivals("W6") == arrivals("W6")


def test_the_mixed_workload_is_the_online_one_with_long_prompts_in_between():
    from peer_arrivals import arrivals

    online, mixed = arrivals("W5"), arrivals("W6")
    assert [a.at_s for a in mixed if not a.is_long] == [a.at_s for a in online]
    long = [a for a in mixed if a.is_long]
    assert [a.at_s for a in long] == [5.0 * i for i in range(12)]
    assert {len(a.item.prompt_token_ids) for a in long} == {2048}
    prompts = [tuple(a.item.prompt_token_ids) for a in online + mixed]
    assert len(set(prompts)) == len(prompts), "a prefix cache would know it"


class _Noting(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.arrived.append(perf_counter())
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def noting_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Noting) as server:
        server.arrived, server.status = [], 200
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_streams_are_sent_when_they_are_due(noting_server):
    from peer_arrivals import run_at
    from streams import StreamFailed, server_sent

    def made():
        return [server_sent(f"http://127.0.0.1:{noting_server.server_port}/", b"{}") for _ in range(3)]

    streams = made()
    start = run_at(streams, [0.0, 0.02, 0.06])
    assert all(when - start >= due for when, due in zip(noting_server.arrived, [0.0, 0.02, 0.06], strict=True))
    assert [stream.messages for stream in streams] == [[b"[DONE]"]] * 3
    noting_server.status = 503
    with pytest.raises(StreamFailed, match="503"):
        run_at(made(), [0.0, 0.0, 0.0])


def _stream(*events):
    from streams import Stream

    messages = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    return Stream("", [], b"", list, messages=messages, times=[float(i) for i in range(len(messages))])


def _chunk(text, reason=None):
    return {"choices": [{"text": text, "finish_reason": reason}]}


def test_a_token_is_an_event_unless_it_only_says_why_the_stream_ended():
    from peer_online import token_times
    from streams import StreamFailed

    from octavo.workloads import Item

    usage = {"choices": [], "usage": {"completion_tokens": 3}}
    stream = _stream(_chunk("a"), _chunk(""), _chunk("b"), _chunk("", "length"), usage, b"[DONE]")
    assert token_times(stream, Item([1], 3)) == [0.0, 1.0, 2.0]
    with pytest.raises(StreamFailed, match="asked for 4 tokens, 3 came"):
        token_times(stream, Item([1], 4))
    with pytest.raises(StreamFailed, match="ended with"):
        token_times(_stream(_chunk("a")), Item([1], 1))


def _contestant(folder, lost=0):
    from peer_contestants import CONTESTANTS

    file = folder / "counting.py"
    file.write_text(ADAPTER.format(adapters=str(BENCH / "peer_adapters"), lost=lost))
    return replace(CONTESTANTS[0], adapter=str(file))


def _turn(contestant, folder):
    import peers
    from peer_report import Results

    results = Results()
    args = Namespace(folder=folder, threads=1, quick=True, workloads=["start", "W1", "W2"])
    peers.turn(contestant, 0, args, results)
    return results


def test_an_engine_in_another_process_is_asked_for_the_workloads(tmp_path):
    results = _turn(replace(_contestant(tmp_path), every_nth={"W2": 3}), tmp_path)
    assert not results.missing
    assert results.versions == {"octavo": "1.2"}
    assert [run.workload for run in results.runs] == ["start", "W1", "W2"]
    assert 0 < results.spread("octavo", "start", "first_token_s").median < 60
    ids = list(range(8))
    assert results.token_ids == {"octavo": {"W1": [ids], "W2": [ids, [], [], ids]}}


def test_who_cannot_be_measured_is_named(tmp_path):
    from peer_contestants import CONTESTANTS

    vllm = next(c for c in CONTESTANTS if c.name == "vllm")
    assert "No such file" in _turn(vllm, tmp_path).missing["vllm"]
    [reason] = _turn(_contestant(tmp_path, lost=1), tmp_path).missing.values()
    assert "exit status 1: ValueError: asked for [1] tokens, [0] came" in reason


def test_what_cannot_be_installed_is_named(tmp_path):
    from peer_install import LLAMA_BINDINGS, LLAMA_VERSION, Peers, install

    archive = tmp_path / f"llama/{LLAMA_BINDINGS}-{LLAMA_VERSION}.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"cut off")
    assert "gzip" in install(Peers(tmp_path), ["llama"], lambda note: None)["llama"]


def test_tables_and_picture_show_all_that_was_measured(results, tmp_path):
    import peer_tables
    from peer_report import ratios
    from rich.console import Console

    seen = results("W4", "ttft_ms", octavo=(90, 110), vllm=(200, 200))
    seen.runs += results("W2", "output_tok_s", octavo=(300,)).runs
    console = Console(file=io.StringIO(), width=180)
    console.print(peer_tables.figures_table(seen, "W4"))
    console.print(peer_tables.ratios_table(ratios(seen)))
    shown = console.file.getvalue()
    assert "100.0 (90.0..110.0)" in shown
    assert "0.50 (0.45..0.55)" in shown and "met" in shown and "not judged" in shown
    peer_tables.draw(seen, "title", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
