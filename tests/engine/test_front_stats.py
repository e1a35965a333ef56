"""Counters over several engine processes, the queue estimate, and deadlines."""

from __future__ import annotations

import math

from octavo.config import EngineConfig
from octavo.deadlines import Deadlines
from octavo.errors import EngineDead
from octavo.front_stats import FrontStats
from octavo.live_table import LiveTable
from octavo.outputs import FinishReason
from octavo.stats import EngineStats, Observations
from octavo.supervisor import RestartLimit


def test_counters_go_on_where_the_last_process_ended() -> None:
    stats = FrontStats(1024)
    stats.update(EngineStats(steps_total=5, num_blocks=8, num_requests_running=1))
    stats.process_ended()
    assert stats.snapshot().steps_total == 5
    assert stats.snapshot().num_requests_running == 0
    stats.update(EngineStats(steps_total=2))
    assert stats.snapshot().steps_total == 7


def test_a_dead_engine_runs_nothing_and_holds_no_block_but_its_counters_stay() -> None:
    table = LiveTable(EngineConfig())
    table.count(EngineStats(steps_total=5, num_requests_running=3, num_blocks=8, num_free_blocks=2), [], Observations())
    assert table.snapshot().num_used_blocks == 6
    # Shut down after it died: the death is told twice.
    for cause in ("the engine process exited", "the engine was shut down"):
        table.set_dead(EngineDead(cause))
        seen = table.snapshot()
        assert (seen.num_requests_running, seen.num_used_blocks, seen.kv_cache_usage) == (0, 0, 0)
        assert (seen.steps_total, seen.engine_restarts_total) == (5, 0)


def test_ends_are_counted_by_reason() -> None:
    stats = FrontStats(1024)
    stats.num_live = 3
    stats.count_ends([FinishReason.STOP, FinishReason.STOP, FinishReason.CANCELLED], now=1)
    assert stats.num_live == 0
    assert stats.snapshot().finished_total == {"stop": 2, "cancelled": 1}


def test_nobody_waits_while_there_are_places() -> None:
    stats = FrontStats(1024)
    stats.num_live = 4
    assert stats.num_waiting(4) == 0
    assert stats.num_waiting(4, num_more=1) == 1
    stats.num_live = 6
    assert stats.num_waiting(4) == 2


def test_places_that_the_kv_cache_has_no_room_for_do_not_count() -> None:
    stats = FrontStats(1024)
    stats.num_live = 3
    stats.update(EngineStats(num_requests_running=1, num_requests_waiting=2))
    assert stats.num_waiting(8) == 2
    assert stats.num_waiting(8, num_more=1) == 3


def test_the_time_to_retry_follows_the_pace_of_the_last_ends() -> None:
    stats = FrontStats(1024)
    assert stats.retry_after_s(5) == 1
    for second in range(0, 20, 2):
        stats.count_ends([FinishReason.STOP], now=second)
    assert stats.retry_after_s(5) == 10
    assert stats.retry_after_s(1000) == 60


def test_deadlines_expire_in_order() -> None:
    deadlines = Deadlines(lambda _: True)
    assert deadlines.next == math.inf
    for at, name in [(3, "c"), (1, "a"), (2, "b")]:
        deadlines.add(at, name)
    assert deadlines.next == 1
    assert deadlines.expired(2) == ["a", "b"]
    assert deadlines.next == 3


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    deadlines = Deadlines(lambda name: name == "live")
    deadlines.add(9, "live")
    for i in range(100_000):
        deadlines.add(i, "ended")
    assert len(deadlines._heap) < 5_000
    assert "live" in deadlines.expired(10)


def test_restarts_are_limited_within_the_window_only() -> None:
    limit = RestartLimit(max_restarts=2, window_s=10)
    assert [limit.allow(now) for now in (0, 1, 2, 9.9)] == [True, True, False, False]
    assert limit.allow(10)
    assert not limit.allow(10.5)
    assert limit.allow(11)
