"""What happened to every update: the books that must close.

A *tally* is one integer that counts updates per channel, 64 bits each, so that counting a mixed queue is one addition
instead of one per channel. For each channel, always::

    offered == delivered + conflated + skipped + lost + still waiting

where what waits is queued, or dropped from a queue for a since() message or a SKIPPED notice that was not taken yet.
"""

from protos.messages import Channel

_BITS = 64
_MASK = (1 << _BITS) - 1


def tally(channel: int, updates: int) -> int:
    """``updates`` of ``channel`` as a tally."""
    return updates << channel * _BITS


def count(total: int, channel: int) -> int:
    """Updates of ``channel`` in a tally."""
    return total >> channel * _BITS & _MASK


def by_channel(total: int) -> dict[Channel, int]:
    """A tally as a dictionary of all channels."""
    return {channel: count(total, channel) for channel in Channel if channel is not Channel.UNKNOWN}


class Counters:
    """Monotonic since start. The first five are tallies, in updates times listeners; the others plain counts.

    Answers of `since()` (snapshots and merged deltas) are not updates of a stream; they are counted apart.
    """

    __slots__ = (
        "applied",
        "catch_ups",
        "catch_ups_encoded",
        "chain_breaks",
        "conflated",
        "delivered",
        "digests",
        "duplicates",
        "gaps",
        "lost",
        "offered",
        "old_epochs",
        "overflows",
        "resumes_delta",
        "resumes_snapshot",
        "skipped",
        "slow_episodes",
    )

    def __init__(self) -> None:
        self.offered = 0
        self.delivered = 0  # taken into a frame
        self.conflated = 0  # covered by a since() message
        self.skipped = 0  # announced by SKIPPED, or by the reply to an unsubscribe
        self.lost = 0  # still waiting when the connection closed
        self.applied = 0  # market updates that were new
        self.duplicates = 0  # (epoch, seq) already applied
        self.old_epochs = 0  # an epoch that is over: a zombie's records
        self.chain_breaks = 0  # prev_seq was not ours: never applied silently
        self.gaps = 0  # times an instrument stopped being live
        self.digests = 0
        self.slow_episodes = 0
        self.overflows = 0  # closed with 4008
        self.catch_ups = 0  # since() messages taken, by joiners, resumed and slow clients
        self.catch_ups_encoded = 0  # of these, the ones that were not shared
        self.resumes_delta = 0
        self.resumes_snapshot = 0
