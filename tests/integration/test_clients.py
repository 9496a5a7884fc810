"""Clients of all kinds through all processes: on time, late, cut off and too slow; and one whose streamer is killed.

Whatever a client goes through, each book that it holds after a message is the top of the full book at that position.
"""

import asyncio
import signal
from dataclasses import dataclass

import pytest

from protos.messages import Channel, Flag, NoticeCode
from services.stack import free_port
from tests.support.cable import cable
from tests.support.scenario import DEPTHS, Feed, Truth, Wanted, Watcher, at_end, mixed, stack_on, truth_of, until

TICKS = {"binance_spot": 3_500, "kraken": 1_000, "okx": 392}
RATE_PER_S = 1_000
CUTS = 3
RUNS_MAX = 3
TIERS = [(depth, 0) for depth in DEPTHS] + [(0, 50), (10, 100), (50, 250)]


def books(instruments: list[str]) -> list[Wanted]:
    return [(name, Channel.BOOK, depth, interval_ms) for name in instruments for depth, interval_ms in TIERS]


@dataclass
class Run:
    """What the clients of one run saw, and what they should have."""

    truth: Truth
    steady: Watcher
    late: Watcher
    resumed: Watcher
    slow: Watcher

    @property
    def everybody(self) -> dict[str, Watcher]:
        return {"steady": self.steady, "late": self.late, "resumed": self.resumed, "slow": self.slow}


async def watch(kafka: str | None) -> Run:
    async with (
        stack_on(kafka) as stack,
        Feed(stack.settings, mixed(**TICKS), RATE_PER_S) as feed,
        cable(stack) as cut,
        cable(stack) as held,
    ):
        await feed.begin(stack)
        wanted = books(feed.instruments)
        async with (
            Watcher(stack.url, wanted) as steady,
            Watcher(cut.url, wanted) as resumed,
            Watcher(held.url, wanted) as slow,
        ):
            await until(lambda: all(len(it.resumed) >= len(wanted) for it in (steady, resumed, slow)), "subscribed")
            feed.flow()
            held.hold()
            for n in range(CUTS):
                await until(lambda: feed.sent > (n + 1) * 1_000, "ticks")  # noqa: B023 - awaited at once
                await until(lambda: len(resumed.resumed) >= (n + 1) * len(wanted), "subscribed")  # noqa: B023
                cut.cut()

            async def slow_client() -> bool:
                return (await stack.streamer.metrics()).get("depthcast_slow_clients", 0) > 0

            await until(slow_client, "slow")
            sent = feed.sent
            await until(lambda: feed.sent > sent + 100, "ticks for which it is too slow")
            held.release()
            async with Watcher(stack.url, wanted) as late:
                await until(lambda: feed.ended, "all ticks sent")
                run = Run(await truth_of(stack, len(feed.ticks)), steady, late, resumed, slow)
                await at_end(run.truth, *run.everybody.values())
                return run


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def run(request: pytest.FixtureRequest) -> Run:
    """One run on each broker.

    All clients share this process, and on a busy machine it may not read for as long as makes a client slow. A run in
    which the server told the steady client that it is SLOW shows nothing of who keeps up, and is made again. Updates
    that are merged for a client that was not told so are never excused.
    """
    kafka = request.getfixturevalue("kafka_server").bootstrap if request.param == "kafka" else None
    for _ in range(RUNS_MAX):
        run = asyncio.run(watch(kafka))
        if not run.steady.notices[NoticeCode.SLOW]:
            break
    return run


@pytest.mark.parametrize("who", ["steady", "late", "resumed", "slow"])
def test_each_tier_is_the_top_of_the_full_book_at_every_message(run: Run, who: str) -> None:
    watcher = run.everybody[who]
    assert watcher.wrong(run.truth) == []
    assert watcher.faults == []
    assert watcher.digests > 0
    seen = {(view.depth, view.interval_ms) for view in watcher.views}
    assert seen == set(TIERS)


def test_who_keeps_up_gets_every_update_of_the_full_book_once(run: Run) -> None:
    assert run.steady.notices[NoticeCode.SLOW] == 0, f"in each of {RUNS_MAX} runs"
    assert run.steady.conflated == []
    assert run.steady.duplicates == 0
    for name in run.truth.books:
        got = [view for view in run.steady.views if (view.instrument, view.depth, view.interval_ms) == (name, 0, 0)]
        chain = run.truth.chain(Channel.RAW, name)
        positions = [(view.epoch, view.seq) for view in got]
        assert positions == chain[chain.index(positions[0]) :]


def test_who_comes_late_starts_with_a_snapshot_of_each_stream(run: Run) -> None:
    started: dict[tuple[str, int, int], int] = {}
    for view in run.late.views:
        started.setdefault((view.instrument, view.depth, view.interval_ms), view.flags)
    assert len(started) == len(run.truth.books) * len(TIERS)
    assert all(flags & Flag.SNAPSHOT for flags in started.values())


def test_who_is_cut_off_resumes_where_it_was(run: Run) -> None:
    streams = len(run.truth.books) * len(TIERS)
    assert run.resumed.disconnects == CUTS
    again = run.resumed.resumed[streams:]
    assert len(again) == CUTS * streams
    one_epoch = run.truth.of_one_epoch()
    assert len(one_epoch) > 10
    assert [name for name, resumed in again if name in one_epoch and not resumed] == []
    assert run.resumed.duplicates == 0
    snapshots = [view for view in run.resumed.views if view.flags & Flag.SNAPSHOT and view.instrument in one_epoch]
    assert len(snapshots) == len(one_epoch) * len(TIERS), "none but the first of each stream"


def test_who_is_slow_gets_merged_updates_and_is_told(run: Run) -> None:
    assert run.slow.disconnects == 0
    assert run.slow.notices[NoticeCode.SLOW] > 0
    assert len(run.slow.conflated) > 0
    assert len(run.slow.views) < len(run.steady.views)
    assert run.slow.duplicates == 0


@pytest.mark.faults
@pytest.mark.parametrize("kafka", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
@pytest.mark.parametrize("checkpoint_interval_ms", [300, 60_000])
async def test_a_killed_streamer_is_replaced_and_its_clients_go_on(
    kafka: str, checkpoint_interval_ms: int, request: pytest.FixtureRequest
) -> None:
    """With old checkpoints the new streamer replays past the client's position, so nothing is sent twice. With new ones
    it may know only later states, and then sends snapshots."""
    bootstrap = request.getfixturevalue("kafka_server").bootstrap if kafka == "kafka" else None
    async with (
        stack_on(bootstrap, checkpoint_interval_ms=checkpoint_interval_ms) as stack,
        Feed(stack.settings, mixed(binance_spot=12_000, kraken=2_561, okx=392), 500) as feed,
    ):
        await feed.begin(stack)
        raw: list[Wanted] = [(name, Channel.RAW, 0, 0) for name in feed.instruments]
        async with Watcher(stack.url, raw) as lossless, Watcher(stack.url, books(feed.instruments)) as tiers:
            await until(lambda: len(lossless.resumed) >= len(raw), "subscribed")
            feed.flow()
            await until(lambda: feed.sent > 600, "ticks")
            await stack.streamer.stop(signal.SIGKILL)
            stack.streamer = await stack.spawn("streamer", free_port())
            await until(lambda: len(lossless.resumed) >= 2 * len(raw), "all of the lossless client's again")
            await until(lambda: len(tiers.resumed) >= 2 * len(tiers.subscriptions), "all of the other client's again")
            sent = feed.sent
            await until(lambda: feed.sent > sent + 500 or feed.ended, "more ticks")
            await feed.stop()
            truth = await truth_of(stack, feed.sent)
            await at_end(truth, lossless, tiers)
    assert lossless.disconnects >= 1
    assert tiers.disconnects >= 1
    assert lossless.faults == tiers.faults == []
    assert lossless.duplicates == tiers.duplicates == 0
    assert tiers.wrong(truth) == []
    if checkpoint_interval_ms == 60_000:
        one_epoch = truth.of_one_epoch()
        assert len(one_epoch) > 10
        assert [name for name, resumed in lossless.resumed[len(raw) :] if name in one_epoch and not resumed] == []
