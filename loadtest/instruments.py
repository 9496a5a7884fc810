"""A synthetic market: books of a fixed number of levels, and deltas that change a few of them. No I/O, no clock."""

import random
from dataclasses import dataclass, field

from protos.messages import BookState, BookUpdate, Flag, Levels, Reason, Scale, StatusUpdate

SCALE = Scale(-2, -5)
LEVELS = 20
"""Levels per side of each book."""
_LOTS_MAX = 1 << 20


OURS = "loadtest:synthetic:"


def names(count: int) -> list[str]:
    """The instruments of a load test."""
    return [f"{OURS}S{i:05d}" for i in range(count)]


@dataclass(slots=True)
class SyntheticBook:
    """One instrument. Prices stay where they are: what a server does does not depend on how far they move."""

    index: int
    epoch: int
    rng: random.Random
    seq: int = 0
    mid: int = 0
    sides: list[list[int]] = field(default_factory=list)

    def snapshot(self, now_ns: int) -> BookUpdate:
        """Start an epoch."""
        self.mid = 1_000_000 + 1_000 * self.index
        self.seq = 1
        self.sides = [[self._lots() for _ in range(LEVELS)] for _ in range(2)]
        bids = [(self.mid - LEVELS + i, lots) for i, lots in enumerate(self.sides[0])]
        asks = [(self.mid + 1 + i, lots) for i, lots in enumerate(self.sides[1])]
        return self._update(now_ns, 0, Flag.SNAPSHOT, bids, asks, SCALE)

    def status(self, now_ns: int) -> StatusUpdate:
        """Live, by the snapshot."""
        return StatusUpdate(
            epoch=self.epoch,
            seq=1,
            flags=Flag.SNAPSHOT,
            ts_event_ns=now_ns,
            ts_received_ns=now_ns,
            state=BookState.SYNCED,
            reason=Reason.SNAPSHOT,
        )

    def delta(self, due_ns: int) -> BookUpdate:
        """Change one level of each side, one in eight times to nothing."""
        before, self.seq = self.seq, self.seq + 1
        changed: list[Levels] = [[], []]
        for side in (0, 1):
            i = self.rng.randrange(LEVELS)
            lots = 0 if self.rng.random() < 0.125 and self.sides[side][i] else self._lots()
            self.sides[side][i] = lots
            changed[side].append((self.mid - LEVELS + i if side == 0 else self.mid + 1 + i, lots))
        return self._update(due_ns, before, Flag.NONE, changed[0], changed[1], None)

    def _lots(self) -> int:
        return self.rng.randrange(1, _LOTS_MAX)

    def _update(
        self, ts_ns: int, prev_seq: int, flags: int, bids: Levels, asks: Levels, scale: Scale | None
    ) -> BookUpdate:
        return BookUpdate(
            epoch=self.epoch,
            seq=self.seq,
            prev_seq=prev_seq,
            flags=flags,
            ts_event_ns=ts_ns,
            ts_received_ns=ts_ns,
            bids=bids,
            asks=asks,
            scale=scale,
        )


def market(count: int, epoch: int, seed: int = 1) -> list[SyntheticBook]:
    """``count`` instruments; the same seed gives the same market."""
    return [SyntheticBook(i, epoch, random.Random(f"{seed}/{i}")) for i in range(count)]


def subscriptions(clients: int, instruments: int, per_client: int, seed: int = 1) -> list[list[int]]:
    """Which instruments each client takes: evenly many listeners for each instrument, no two clients alike."""
    rng = random.Random(seed)
    chosen: list[list[int]] = []
    pool: list[int] = []
    for _ in range(clients):
        mine: dict[int, None] = {}
        while len(mine) < per_client:
            if not pool:
                pool = list(range(instruments))
                rng.shuffle(pool)
            mine[pool.pop()] = None
        chosen.append(sorted(mine))
    return chosen
