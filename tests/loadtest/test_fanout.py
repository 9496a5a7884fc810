"""Short real runs: the streamer and the references as processes, twenty clients. Nothing is lost, all adds up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.churn import measure_churn, measure_storm
from loadtest.connect import measure_connections
from loadtest.errors import LoadTestError
from loadtest.fanout import Load, as_often_us, chosen, compare, connected, measure, usual_pace
from loadtest.histogram import Histogram
from loadtest.processes import descriptors
from loadtest.report import write_json, write_report
from loadtest.servers import Depthcast, Reference, Running
from loadtest.slow import measure_slow
from loadtest.swarm import Swarm
from tests.support.needs import need_compiler

LOAD = Load(clients=20, instruments=10, per_client=5, rate=200, seconds=1)
CONTRACT = (
    *("deliveries_per_s", "expected_per_s", "lost", "p50_ms", "p99_ms", "p999_ms", "max_ms"),
    *("usual_pace_p99_ms", "usual_pace_percent"),
    *("server_cpu_s_per_million", "reference_cpu_s_per_million", "ratio", "server_rss_mib", "frames_per_send"),
)


async def test_the_streamer_delivers_all_beside_a_reference_and_reports_it(tmp_path: Path) -> None:
    result = await compare(Depthcast(environment={"DEPTHCAST_DIGEST_INTERVAL_MS": "300"}), LOAD, ["broadcast"])
    assert (result["lost"], result["closed"]) == (0, {})
    assert result["expected_per_s"] == LOAD.rate * LOAD.clients * LOAD.per_client / LOAD.instruments
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["p999_ms"] <= result["max_ms"] < 5_000
    checks = result["checks"]
    assert checks["digests_passed"] > 0
    assert (checks["digests_failed"], checks["broken_chains"], checks["errors"]) == (0, 0, [])
    assert result["references"]["broadcast"]["lost"] == 0
    write_json(result, tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert set(CONTRACT) <= set(written)
    write_report(result, tmp_path / "result.md")
    assert "result.svg" in (tmp_path / "result.md").read_text()
    assert (tmp_path / "result.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("name", ["naive", "c", "python", "python-books"])
async def test_a_reference_delivers_all(name: str) -> None:
    if name == "c":
        need_compiler()
    result = await measure(Reference(name), Load(clients=20, instruments=100, per_client=100, rate=50, seconds=1))
    assert result.lost == 0
    assert result.deliveries_per_s == pytest.approx(result.expected_per_s, rel=0.5)


class Small(Swarm):
    """Clients whose kernel holds little."""

    def receive_buffer(self, index: int) -> int:  # noqa: ARG002
        return 4_096


@pytest.mark.parametrize("name", ["c", "python"])
async def test_a_floor_drops_who_is_behind_by_a_whole_flush_and_nobody_else(name: str) -> None:
    if name == "c":
        need_compiler()
    server, load = Reference(name, 50_000), Load(clients=5, instruments=4, per_client=4, rate=100_000, seconds=1)
    try:
        target, source = await server.start(load.instruments)
        assert target.pid
        swarm = Small(target, chosen(load, target))
        async with connected(swarm):
            await swarm.settle()  # the snapshots
            swarm.reset()
            swarm.clients[0].read_to(1)
            before = descriptors(target.pid)
            published = sum((await swarm.while_alive(source, load.rate, load.seconds))["published"])
            await swarm.settle(4 * published)
            assert descriptors(target.pid) == before - 1
            assert [counts.updates for counts in swarm.receiver.counts] == [0, *[published] * 4]
    finally:
        await server.stop()


@pytest.mark.parametrize("name", ["c", "python"])
async def test_a_floor_sends_as_often_as_the_server_did(name: str) -> None:
    """By its sends, not by how often it looked whether there is something."""
    if name == "c":
        need_compiler()
    load = Load(clients=20, instruments=10, per_client=10, rate=1_000, seconds=1)
    ours = await measure(Depthcast(environment={"DEPTHCAST_FLUSH_INTERVAL_MIN_MS": "40"}), load)
    assert ours.frames_per_send > 10
    often = replace(ours, flush_interval_ms=ours.flush_interval_ms / 4)
    theirs = await measure(Reference(name, as_often_us(often, load.clients)), load)
    assert theirs.frames_per_send == pytest.approx(ours.frames_per_send, rel=0.3)
    assert as_often_us(replace(often, frames_per_send=1.0, flush_interval_ms=2.0), load.clients) == 2_000


def test_a_p99_at_the_usual_pace_is_of_at_least_half_of_the_latencies() -> None:
    latencies = Histogram()
    latencies.record([64_000_000] * 50)
    assert usual_pace(latencies, 100) == {"usual_pace_p99_ms": 63.963, "usual_pace_percent": 50.0}
    assert usual_pace(latencies, 101) == {"usual_pace_p99_ms": None, "usual_pace_percent": 49.5}
    assert usual_pace(Histogram(), 0) == {"usual_pace_p99_ms": None, "usual_pace_percent": 0.0}


async def test_connections_are_weighed() -> None:
    result = await measure_connections(Depthcast(), clients=300, instruments=10, per_client=1)
    assert 1 < result["kib_per_connection"] < 40
    assert result["connects_per_s"] > 50


async def test_clients_that_are_told_to_come_back_do() -> None:
    server = Depthcast(environment={"DEPTHCAST_HANDSHAKES_PER_S": "40"})
    result = await measure_storm(server, Load(clients=60, instruments=4, per_client=1, rate=50, seconds=1))
    assert result["refused"] > 0
    assert result["closed"] == {}


async def test_slow_and_dead_clients_cost_the_others_nothing_and_every_update_is_accounted_for() -> None:
    environment = {
        "DEPTHCAST_OUTBOX_SOFT_BYTES": "8192",
        "DEPTHCAST_OUTBOX_HARD_BYTES": "32768",
        "DEPTHCAST_OUTBOX_STALL_MS": "1500",
    }
    ratios: list[float] = []
    while not ratios or ratios[-1] > 1.5:
        assert len(ratios) < 3, ratios  # others on this machine may spoil one of them
        result = await measure_slow(Depthcast(environment=environment), Load(60, 20, 20, 1_000, 4))
        ratios.append(result["fast_p99_ratio"])
        assert_accounts_close(result)


def assert_accounts_close(result: dict[str, Any]) -> None:
    assert (result["unaccounted"], result["fast_lost"], result["slow_closed"]) == (0, 0, 0)
    assert (
        0 < result["server_account"]['updates_offered_total{channel="book"}'] <= result["offered"]
    )  # none to the closed
    assert result["server_unaccounted"] == 0
    assert result["dead_closed"] == result["clients"]["dead"] == 3
    assert result["conflated"] > 0
    assert result["offered"] == sum(result[name] for name in ("delivered", "conflated", "skipped", "lost_with_closed"))
    assert (result["digests_failed"], result["broken_chains"]) == (0, 0)


async def test_churn_and_storm_leave_nothing_behind() -> None:
    load = Load(clients=50, instruments=10, per_client=2, rate=200, seconds=2)
    result = await measure_churn(Depthcast(), load, 20)
    assert result["replaced"] >= 30
    assert result["files_left"] <= 1
    assert result["tasks_left"] <= 1
    assert 0 < result["tasks_under_load"] <= result["tasks_idle"] + 1, "no task for a connection"
    assert (result["digests_failed"], result["broken_chains"]) == (0, 0)
    result = await measure_storm(Depthcast(), load)
    assert (result["closed"], result["digests_failed"], result["broken_chains"]) == ({}, 0, 0)


async def test_what_cannot_be_is_said_in_one_line() -> None:
    with pytest.raises(LoadTestError, match="only 10 instruments"):
        await measure(Depthcast(), Load(1, 10, 11, 1, 1))
    with pytest.raises(LoadTestError, match="ws://HOST:PORT"):
        await Running("http://127.0.0.1", {"feed": 1}).start(1)
    with pytest.raises(LoadTestError, match="say one of c, python, python-books, naive"):
        await compare(Depthcast(), LOAD, ["rust"])
