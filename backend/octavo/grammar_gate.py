"""GrammarGate: holds back sequences whose next token nobody could choose yet, because their grammar is not there.

New ones wait until their grammar has been tried out and compiled; running ones come back where a mask was lost. The
processes that do all this are started at the first grammar. Knows no step and no device.
"""

from __future__ import annotations

import select

from octavo.core.sequence import Sequence
from octavo.core.step import TokenMask
from octavo.errors import InvalidRequest
from octavo.grammar.followed_text import TextFollower
from octavo.grammar.trials import Trials
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

_POLL_S = 0.002


class GrammarGate:
    """Owns the grammar processes and the sequences that wait. For the engine's thread."""

    def __init__(self) -> None:
        self._vocabulary: Vocabulary | None = None
        self._trials: Trials | None = None
        self._follower: TextFollower | None = None
        # With the text that follows the grammar, once that has been tried out.
        self._held: dict[Sequence, TokenMask | None] = {}

    @property
    def num_held(self) -> int:
        """Sequences that wait here."""
        return len(self._held)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that try and that follow grammars, for tests and debuggers; none before the first grammar."""
        if self._trials is None or self._follower is None:
            return ()
        return self._trials.pid, self._follower.pid

    def use(self, vocabulary: Vocabulary) -> None:
        """What the model's tokens write: needed before the first grammar."""
        self._vocabulary = self._vocabulary or vocabulary

    def prepare(self, asked: StructuredOutputs) -> None:
        """Before a sequence is held: starts the processes. Raises InvalidRequest where no grammar can be followed."""
        if self._vocabulary is None:
            raise InvalidRequest(asked.parameter, asked.kind, "nothing: this engine was not told what its tokens write")
        if self._trials is None or self._follower is None:
            self._trials, self._follower = Trials(self._vocabulary), TextFollower(self._vocabulary)

    def hold(self, seq: Sequence, grammar: TokenMask | None = None) -> None:
        """Takes a sequence until `turn` gives it back; `grammar` if it has been running."""
        asked = seq.params.structured_outputs
        if grammar is not None:
            grammar.was_missed = False
        elif asked is not None and self._trials is not None:
            self._trials.error_of(asked)  # so that a trial begins with the next turn
        self._held[seq] = grammar

    def drop(self, seq: Sequence) -> bool:
        """A sequence has ended; whether it was held back."""
        if seq not in self._held:
            return False
        grammar = self._held.pop(seq)
        if grammar is not None:
            grammar.close()
        asked = seq.params.structured_outputs
        is_wanted = any(other.params.structured_outputs == asked for other in self._held)
        if asked is not None and self._trials is not None and not is_wanted:
            self._trials.withdraw(asked)
        return True

    def turn(self) -> tuple[dict[Sequence, TokenMask], dict[Sequence, InvalidRequest]]:
        """The sequences that may run now, and those that never will, to be dropped, with the reason. Does not wait."""
        ready: dict[Sequence, TokenMask] = {}
        refused: dict[Sequence, InvalidRequest] = {}
        if self._trials is None or self._follower is None:
            return ready, refused
        self._trials.turn()
        self._follower.turn()
        for seq, grammar in self._held.items():
            asked = seq.params.structured_outputs
            assert asked is not None
            if grammar is not None:
                if grammar.has_arrived:
                    ready[seq] = grammar
                continue
            error = self._trials.error_of(asked)
            if error:
                refused[seq] = asked.refusal(error)
            elif error is not None:
                output = seq.token_ids[seq.num_prompt_tokens :]
                self._held[seq] = self._follower.open(asked, output, list(seq.request.end_token_ids))
        for seq in ready:
            del self._held[seq]
        return ready, refused

    def check(self, asked: StructuredOutputs) -> None:
        """Waits until it is known whether a grammar can be used. Raises InvalidRequest where it cannot."""
        self.prepare(asked)
        assert self._trials is not None
        while (error := self._trials.error_of(asked)) is None:
            self._trials.turn(_POLL_S)
        if error:
            raise asked.refusal(error)

    def flush(self) -> None:
        """Passes on what texts have been told: their masks are computed while the device works."""
        if self._follower is not None:
            self._follower.turn()

    def wait(self) -> None:
        """With nothing to compute: until a grammar process may have something to say, for `turn` to hear."""
        if self._trials is None or self._follower is None:
            return
        self._follower.flush()
        poll = select.poll()
        for each in (self._trials, self._follower):
            if not each.is_gone:
                poll.register(each, select.POLLIN)
        poll.poll(_POLL_S * 1000)

    def close(self) -> None:
        """Ends the processes."""
        if self._trials is not None and self._follower is not None:
            self._trials.close()
            self._follower.close()
