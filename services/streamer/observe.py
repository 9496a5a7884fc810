"""What Prometheus reads of the streamer when it scrapes: nothing here costs anything between scrapes."""

import time
from collections import Counter

from protos.messages import BookState
from services.metrics import Metrics
from services.streamer.clients import Clients
from services.streamer.market import MarketReader
from streamer.counters import by_channel
from streamer.hub import Hub


def observe(metrics: Metrics, hub: Hub, clients: Clients, market: MarketReader) -> None:
    """Connect the sampled metrics to their sources."""
    counters, reader = hub.counters, market.reader
    metrics.connections.read = lambda: clients.open
    metrics.subscriptions.read = lambda: sum([len(outbox.lanes) for outbox in hub.outboxes])
    metrics.streams.read = lambda: len(hub.streams())
    metrics.slow_clients.read = lambda: sum([outbox.slow for outbox in hub.outboxes])
    metrics.outbox_bytes.read = lambda: _waiting_bytes(hub, clients)
    metrics.sends.read = lambda: clients.sends
    metrics.sent_bytes.read = lambda: clients.sent_bytes
    metrics.updates_received.read = lambda: counters.applied
    metrics.duplicates.read = lambda: counters.duplicates + counters.old_epochs
    metrics.chain_breaks.read = lambda: counters.chain_breaks
    metrics.updates_offered.read = lambda: _by_channel(counters.offered)
    metrics.updates_waiting.read = lambda: _by_channel(hub.queued())
    metrics.updates_sent.read = lambda: _by_channel(counters.delivered)
    metrics.conflated.read = lambda: _by_channel(counters.conflated)
    metrics.skipped.read = lambda: _by_channel(counters.skipped)
    metrics.lost.read = lambda: _by_channel(counters.lost)
    metrics.resumes.read = lambda: {
        ("delta",): counters.resumes_delta,
        ("snapshot",): counters.resumes_snapshot,
    }
    metrics.books.read = lambda: _books(hub)
    metrics.book_age.read = lambda: _oldest_s(hub, market)
    metrics.kafka_lag.read = lambda: {(topic, str(p)): lag for (topic, p), lag in reader.lag().items()}
    metrics.kafka_last_poll_age.read = reader.last_poll_age_s


def _waiting_bytes(hub: Hub, clients: Clients) -> int:
    """In the outboxes, and what was taken from them and not by the kernel."""
    written = [member for outbox, member in clients.members.items() if outbox.queue.socket < 0]  # by their transports
    return hub.queued_bytes() + sum([member.unsent() for member in written])


def _by_channel(total: int) -> dict[tuple[str, ...], float]:
    return {(channel.name.lower(),): count for channel, count in by_channel(total).items()}


def _books(hub: Hub) -> dict[tuple[str, ...], float]:
    counted = Counter(status.state for name in hub.instruments() if (status := hub.status(name)) is not None)
    return {(state.name.lower(),): counted[state] for state in BookState}


def _oldest_s(hub: Hub, market: MarketReader) -> float:
    """Of live books only: what is flagged is not news."""
    live = [
        updated_ns
        for name, updated_ns in market.updated_ns.items()
        if (status := hub.status(name)) is not None and status.state is BookState.SYNCED
    ]
    return (time.monotonic_ns() - min(live)) / 1e9 if live else 0.0
