"""Handing requests to engines from a thread: templates and tokenizers take milliseconds, too long for the event loop.

Knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def submit_in_thread(submit: Callable[[], T], cancel: Callable[[T], object]) -> T:
    """What `submit` returns. Who gives up waiting for it has it cancelled: a thread cannot be stopped on its way."""
    submitting = asyncio.get_running_loop().run_in_executor(None, submit)
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(lambda late: _cancel_late(late, cancel))
        raise


def _cancel_late(late: asyncio.Future[T], cancel: Callable[[T], object]) -> None:
    if not late.cancelled() and late.exception() is None:
        cancel(late.result())
