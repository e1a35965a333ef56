"""What becomes of a request whose client leaves while a thread still makes tokens of it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from octavo_kserve.submission import submit_in_thread


def test_who_waits_gets_what_was_submitted() -> None:
    cancelled: list[str] = []
    assert asyncio.run(submit_in_thread(lambda: "stream", cancelled.append)) == "stream"
    assert cancelled == []


@pytest.mark.parametrize("refused", [False, True])
def test_what_nobody_waits_for_any_more_is_cancelled_as_soon_as_it_is_there(refused: bool) -> None:
    begun, go_on, cancelled = threading.Event(), threading.Event(), asyncio.Queue[str]()

    def submit() -> str:
        begun.set()
        assert go_on.wait(10)
        if refused:
            raise ValueError("refused")
        return "stream"

    async def leave() -> None:
        waiting = asyncio.create_task(submit_in_thread(submit, cancelled.put_nowait))
        await asyncio.to_thread(begun.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert cancelled.empty()
        go_on.set()
        if not refused:
            assert await asyncio.wait_for(cancelled.get(), 10) == "stream"

    asyncio.run(leave())
    assert cancelled.empty()
