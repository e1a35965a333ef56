"""The curl commands of README and docs, run as they stand there against the servers that they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from model_repositories import killed_afterwards, options_for

from octavo.checkpoint import default_model
from octavo_triton.launch import TritonServer

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OWN_MODEL = "Serve your own model on the Triton server"
# Which server is meant under a heading. A command under another one fails until its heading stands here.
SERVERS = {
    "Two commands": "triton_server",
    "Calls of tools": "triton_server",
    OWN_MODEL: "own_model_server",
    "On KServe": "kserve_server",
}
# The address that the commands have, and the path that stands for a model of the reader's.
ADDRESS, THEIR_MODEL = "localhost:8000", "/models/my-llama"
TIMEOUT_S = 120
# Where curl itself looks for options, so that the commands need not be changed.
OPTIONS = "fail-with-body\nsilent\nshow-error\n"


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences, and under which heading."""

    page: str
    heading: str
    kind: str
    text: str

    @property
    def has_curl(self) -> bool:
        """Whether curl is called."""
        return self.kind == "sh" and re.search(r"^\s*curl\s", self.text, re.MULTILINE) is not None


def blocks(page: Path) -> Iterator[Block]:
    """All of a page."""
    heading = ""
    pieces = re.finditer(r"^#+ ([^\n]+)$|^( *)```(\w*)\n(.*?)^\2```$", page.read_text(encoding="utf-8"), re.M | re.S)
    for piece in pieces:
        if piece[1] is not None:
            heading = piece[1]
        else:
            yield Block(page.name, heading, piece[3], textwrap.dedent(piece[4]))


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.has_curl]


def of_own_model(kind: str) -> str:
    """The first block of this kind of the steps to a model of the reader's own."""
    return next(block.text for block in BLOCKS if block.heading == OWN_MODEL and block.kind == kind)


@pytest.fixture(scope="module")
def own_model_server(tmp_path_factory: pytest.TempPathFactory, server_dir: Path) -> Iterator[TritonServer]:
    """One with what README's steps make; the embedded model stands for the reader's."""
    folder = tmp_path_factory.mktemp("own")
    subprocess.run(["bash", "-euc", of_own_model("sh")], cwd=folder, check=True)
    arguments = of_own_model("json").replace(THEIR_MODEL, str(default_model()))
    (folder / "model_repository/mymodel/1/model.json").write_text(arguments, encoding="utf-8")
    with killed_afterwards(options_for(folder / "model_repository", server_dir, load_models=None)) as server:
        yield server


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: f"{block.page}: {block.heading}")
def test_a_command_does_what_is_said_of_it(block: Block, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert block.heading in SERVERS, f"which server is this for?\n{block.text}"
    server = request.getfixturevalue(SERVERS[block.heading])
    url = server.http_url if isinstance(server, TritonServer) else server.url
    (tmp_path / ".curlrc").write_text(OPTIONS)
    assert ADDRESS in block.text
    command = block.text.replace(ADDRESS, url.removeprefix("http://"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "CURL_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said(done.stdout).strip(), done.stdout


def said(output: str) -> str:
    """The text of an answer, of whichever route, whole or in events."""
    lines = [line.removeprefix("data: ") for line in output.splitlines() if line.startswith("data: ")]
    answers = [json.loads(line) for line in lines or [output] if line != "[DONE]"]
    return "".join(text_of(answer) for answer in answers)


def text_of(answer: dict[str, Any]) -> str:
    """What one JSON object says."""
    if "text_output" in answer:
        return str(answer["text_output"])
    messages = (choice["delta" if "delta" in choice else "message"] for choice in answer["choices"])
    return "".join(message.get("content", "") for message in messages)


def test_no_command_is_left_out() -> None:
    for page in PAGES:
        calls = re.findall(r"\bcurl +(?:-|localhost|http)", page.read_text(encoding="utf-8"))
        found = [block.text for block in COMMANDS if block.page == page.name]
        assert len(calls) == sum(len(re.findall(r"\bcurl +(?:-|localhost|http)", text)) for text in found), page
    assert {block.heading for block in COMMANDS} == set(SERVERS)
