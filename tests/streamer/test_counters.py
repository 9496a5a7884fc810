from hypothesis import given
from hypothesis import strategies as st

from protos.messages import Channel
from streamer.counters import by_channel, count, tally

CHANNELS = [channel for channel in Channel if channel is not Channel.UNKNOWN]


@given(st.lists(st.tuples(st.sampled_from(CHANNELS), st.integers(0, 2**40)), max_size=20))
def test_one_sum_counts_all_channels(updates: list[tuple[Channel, int]]) -> None:
    total = sum(tally(channel, number) for channel, number in updates)
    for channel in CHANNELS:
        expected = sum(number for c, number in updates if c is channel)
        assert count(total, channel) == expected == by_channel(total)[channel]
