"""A grammar process: `python -m octavo.grammar.worker --fd N --serves trials|texts`.

Two of them run beside an engine: one tries grammars out, the other follows texts by them. Ends when the engine ends.
Imports no torch.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import socket
import sys
import threading

from octavo.grammar.compiler import Compiler
from octavo.grammar.memory import limit_growth
from octavo.grammar.messages import Begin, Started, ToGrammar
from octavo.grammar.process import TEXTS, TRIALS
from octavo.grammar.text_server import TextServer
from octavo.grammar.trial_server import TrialServer
from octavo.wire import Connection

_LONGEST_WAIT_S = 60.0


def serve(connection: Connection[ToGrammar], serves: str) -> None:
    """The whole life of a grammar process. Raises EOFError or ConnectionError when the engine has ended."""
    messages: list[ToGrammar] = []
    while not messages:
        if connection.wait(_LONGEST_WAIT_S):
            messages = connection.read()
    begin = messages[0]
    assert isinstance(begin, Begin) and len(messages) == 1, "nothing is asked before the answer to the first message"
    compiler = Compiler(begin.vocabulary)
    # Whoever takes too much is ended by a signal: that is no fault to keep a picture of.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if serves == TRIALS:
        connection.send(Started())
        TrialServer(compiler, connection).run()
    else:
        limit_growth(begin.memory_bytes)
        threading.Thread(target=_exit_on_hang_up, args=(connection.fileno(),), name="octavo-watch", daemon=True).start()
        connection.send(Started())
        TextServer(compiler, connection, begin.memory_bytes).run()


def _exit_on_hang_up(fd: int) -> None:
    """For who may be computing when the engine ends."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="octavo.grammar.worker")
    parser.add_argument("--fd", type=int, required=True, help="an inherited socket to the engine")
    parser.add_argument("--serves", choices=(TRIALS, TEXTS), required=True)
    options = parser.parse_args()
    # The engine decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Who had it ignored would never hear of the ends of children; that is inherited.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        serve(Connection(socket.socket(fileno=options.fd), ToGrammar), options.serves)
    except (EOFError, ConnectionError):
        # Not before its threads have ended, one of which may be compiling.
        os._exit(0)
    return 1


if __name__ == "__main__":
    sys.exit(main())
