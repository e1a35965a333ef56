"""Takes the pictures of the page that docs/ shows, on a server of its own with the embedded model:

    python integration/screenshot_kserve_page.py docs

A person chats while a few other clients come and go.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

from chromium import Page, open_browser
from kserve_server import KServeServer

QUESTIONS = ("Write a Python function that reverses a list.", "Now write a short poem about the sea.")
# (seconds from the start, clients, tokens for each)
VISITS = [(2, 2, 90), (14, 5, 120), (27, 3, 60), (38, 8, 110), (55, 2, 150), (66, 6, 130), (84, 4, 90), (108, 4, 260)]
SEEDED = {"temperature": 0.7, "seed": 6}
LAST_QUESTION_S = 109
SIZE = (1280, 950)


def visit(server: KServeServer, index: int, num_tokens: int) -> threading.Thread:
    """One client that reads its answer to the end."""
    prompt = f"Letter {index} from the sea, to be read aloud: " + "the tide comes in, the tide goes out. " * index
    body = {"prompt": prompt, "max_tokens": num_tokens + 12 * index, "ignore_eos": True, "seed": index}
    thread = threading.Thread(target=server.post, args=("/v1/completions", body), daemon=True)
    thread.start()
    return thread


def ask(page: Page, question: str) -> None:
    page.chat(question)
    page.wait_idle()


def keep_busy(server: KServeServer, start: float) -> None:
    """Sends the visitors, each at its time."""
    for at_s, num_clients, num_tokens in VISITS:
        time.sleep(max(0.0, start + at_s - time.monotonic()))
        for i in range(num_clients):
            visit(server, i, num_tokens)


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with KServeServer(log, "--model_name", "smollm2") as server, open_browser(server.url) as page:
            page.resize(*SIZE)
            page.open()
            page.wait_state("ready")
            page.set_settings(**SEEDED)
            start = time.monotonic()
            threading.Thread(target=keep_busy, args=(server, start), daemon=True).start()
            ask(page, QUESTIONS[0])
            time.sleep(max(0.0, start + LAST_QUESTION_S - time.monotonic()))
            ask(page, QUESTIONS[1])
            for name, scheme in (("kserve-page", "light"), ("kserve-page-dark", "dark")):
                page.prefer(scheme)
                page.save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
