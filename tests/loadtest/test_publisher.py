"""What is published when, and with which time: an open loop."""

import time
from typing import Any

import pytest

from loadtest import publisher
from loadtest.instruments import market
from loadtest.publisher import BrokerSink, Publisher, Update
from protos.messages import BookUpdate, MarketMessage
from protos.records import decode_market, encode_market

INSTRUMENTS = 7


class Kept:
    """A sink that keeps what is written, and when."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, BookUpdate]] = []  # (when, instrument, update)

    def encode(self, index: int, message: MarketMessage) -> bytes:  # noqa: ARG002
        return encode_market(message)

    def gather(self, updates: list[Update], due_ns: int) -> tuple[int, list[Update]]:
        return due_ns, updates

    async def write(self, gathered: tuple[int, list[Update]]) -> None:
        now_ns = time.time_ns()
        due_ns, updates = gathered
        assert due_ns <= now_ns
        for index, data in updates:
            message = decode_market(data)
            if isinstance(message, BookUpdate):
                self.written.append((now_ns, index, message))

    async def close(self) -> None: ...


@pytest.mark.parametrize("ahead_max", [600_000, 100], ids=["made ahead", "made when due"])
@pytest.mark.parametrize("rate", [5_000.0, 317.0])
async def test_each_update_has_its_time_and_comes_after_it(
    monkeypatch: pytest.MonkeyPatch, ahead_max: int, rate: float
) -> None:
    monkeypatch.setattr(publisher, "AHEAD_MAX", ahead_max)
    sink = Kept()
    it = Publisher(market(INSTRUMENTS, 1), sink)
    await it.snapshots()
    for _ in range(2):
        sink.written.clear()
        run = await it.run(rate, 0.3)
        total = round(rate * 0.3)
        assert len(sink.written) == total == sum(run.published)
        counts = [0] * INSTRUMENTS
        for k, (written_ns, index, update) in enumerate(sink.written):
            counts[index] += 1
            assert update.ts_received_ns == run.started_ns + int(k * 1e9 / rate)
            assert update.ts_received_ns <= written_ns
        assert counts == run.published
        assert run.seconds >= (total - 1) / rate


async def test_a_run_that_is_not_stamped_in_time_begins_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Kept):
        slow = 3

        def gather(self, updates: list[Update], due_ns: int) -> tuple[int, list[Update]]:
            if self.slow:
                self.slow -= 1
                time.sleep(0.15)
            return super().gather(updates, due_ns)

    monkeypatch.setattr(publisher, "STAMP_NS", 0)
    sink = Kept()
    it = Publisher(market(INSTRUMENTS, 1), sink)
    await it.snapshots()
    it._sink = slow = Slow()
    run = await it.run(1_000, 0.05)
    assert slow.slow == 0
    assert sum(run.published) == len(slow.written) == 50
    assert slow.written[0][0] >= run.started_ns
    assert run.late_max_ms < 100, "begun when it was first planned, it would be late by 300"


def test_the_broker_gets_one_batch_for_each_partition() -> None:
    sink = BrokerSink(0, ["market"], 3, "market", INSTRUMENTS)
    gathered: dict[int, Any] = sink.gather([(i, b"%d" % i) for i in range(INSTRUMENTS)], 1_000_000)
    assert sum(count for count, _ in gathered.values()) == INSTRUMENTS
    assert set(gathered) <= {0, 1, 2}
