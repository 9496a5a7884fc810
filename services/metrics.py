"""All metrics, in one list: each with its unit and a sentence. The only module that defines any.

No label comes from a client, and none counts instruments: every label has a small, known set of values.

Prometheus objects cost about a microsecond a call, too much for what happens per update or per client. So:
- what a pure core counts in plain integers is `Sampled`: a callable reads it when Prometheus scrapes;
- latencies are `Latency`: one bisection, no lock (all observers run on one event loop).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from protos.messages import BookState, Channel, CloseCode, Reason

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds, 100 us to 2.5 s: below is noise of the clock, above is an outage and not a latency."""

LIMITS = (
    *("sockets", "connections", "connections_per_address", "connections_per_token", "handshake_rate"),
    *("connection_age", "head_size", "body_size", "request_timeout"),
    *("command_size", "command_rate", "subscriptions", "controls", "fragments"),
)
"""What a client can run into, by the setting that says how far it may go."""

Samples = float | Mapping[tuple[str, ...], float]
"""One value, or one for each combination of label values."""


class Sampled(Collector):
    """A counter or gauge that is read when scraped. Set ``read`` to a callable; without one it is absent.

    A counter's name ends in ``_total``.
    """

    def __init__(self, registry: CollectorRegistry, name: str, sentence: str, labels: tuple[str, ...] = ()) -> None:
        self._family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        self._definition = (name, sentence, labels)
        self.read: Callable[[], Samples] | None = None
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        name, sentence, labels = self._definition
        return [self._family(name, sentence, labels=labels)]

    def collect(self) -> Iterable[Metric]:
        family = next(iter(self.describe()))
        samples = {} if self.read is None else self.read()
        if not isinstance(samples, Mapping):
            samples = {(): samples}
        for label_values, value in samples.items():
            family.add_metric(label_values, value)  # type: ignore[attr-defined]
        return [family]


class Latency(Collector):
    """A histogram of seconds without labels and without a lock."""

    def __init__(self, registry: CollectorRegistry, name: str, sentence: str) -> None:
        self._definition = (name, sentence)
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0
        registry.register(self)

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count ``count`` events that took ``seconds`` each. Clocks of two machines disagree: negative counts as 0."""
        seconds = max(seconds, 0.0)
        self._counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += count
        self._sum_s += seconds * count

    def quantile_ms(self, q: float) -> float:
        """Milliseconds at quantile ``q``, interpolated in its bucket as Prometheus does; 0 without events."""
        rank = q * sum(self._counts)
        bounds = (0.0, *LATENCY_BUCKETS_S)
        for i, count in enumerate(self._counts[:-1]):
            if count and rank <= count:
                return 1e3 * (bounds[i] + (bounds[i + 1] - bounds[i]) * rank / count)
            rank -= count
        return 1e3 * bounds[-1] if rank > 0 else 0.0

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(*self._definition)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(*self._definition)
        buckets, total = [], 0
        for bound, count in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric((), buckets, self._sum_s)
        return [family]


def _names(*enums: Iterable[Reason | BookState | Channel]) -> tuple[str, ...]:
    return tuple(member.name.lower() for enum in enums for member in enum)


class Metrics:
    """The metrics of one process, in their own registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each counter, that nothing reads
        self.registry = CollectorRegistry()
        self.labels: dict[str, tuple[str, ...]] = {}
        """Name -> its labels, for the documentation."""
        self._define_process()
        self._define_kafka()
        self._define_ingest()
        self._define_clients()
        self._define_access()
        self._define_delivery()

    def _define_process(self) -> None:
        self.ready = self._gauge("ready", "1 when this process serves, 0 while it catches up or drains.")
        self.loop_lag = self._latency("event_loop_lag_seconds", "Seconds by which a timer of the event loop was late.")
        self.tasks = self._sampled("tasks", "Tasks of the event loop; connections have none of their own.")
        self.log_lines_lost = self._sampled(
            "log_lines_lost_total",
            "Lines of the log that could not be written at once: its reader stands still, or is full.",
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def _define_kafka(self) -> None:
        self.kafka_lag = self._sampled(
            "kafka_lag_records", "Records between our position and the end of the partition.", "topic", "partition"
        )
        self.kafka_last_poll_age = self._sampled(
            "kafka_last_poll_age_seconds", "Seconds since Kafka last answered a poll, with records or without."
        )
        self.kafka_records = self._counter("kafka_records_total", "Records read from Kafka.", "topic")
        self.kafka_offsets_lost = self._counter(
            "kafka_offsets_lost_total",
            "Times our position had expired from the log: data is missing, a new epoch began.",
        )

    def _define_ingest(self) -> None:
        self.tick_to_publish = self._latency(
            "tick_to_publish_seconds", "Seconds from the feed's receipt of a tick to its update being written to Kafka."
        )
        self.updates_published = self._counter("updates_published_total", "Updates that ingest wrote to Kafka.")
        self.gaps = self._counter("gaps_total", "Books whose continuity was lost.", "reason", known=_names(Reason))
        self.checksums = self._counter(
            "checksums_total", "Venue checksums recomputed on our book.", "result", known=("passed", "failed")
        )
        self.epochs = self._counter("epochs_total", "Epochs started: chains that begin anew with a snapshot.")
        self.crossed = self._counter(
            "crossed_books_total", "Updates after which the best bid was not below the best ask."
        )
        self.dead_letters = self._counter("dead_letters_total", "Records that could not be used, by reason.", "reason")
        self.foreign_states = self._counter(
            "foreign_states_total",
            "Times that another worker had written states of a partition of ours, late; ours were written over them.",
        )
        self.checkpoint_duration = self._latency("checkpoint_duration_seconds", "Seconds that a checkpoint took.")
        self.checkpoint_age = self._sampled(
            "checkpoint_age_seconds", "Seconds since the oldest of our partitions had its last checkpoint."
        )

    def _define_clients(self) -> None:
        codes = (*map(str, _COUNTED_CODES), "other")
        self.connections = self._sampled("connections", "Stream connections that are open.")
        self.connects = self._counter("connects_total", "Stream connections opened.")
        self.disconnects = self._counter(
            "disconnects_total", "Stream connections closed, by code.", "code", known=codes
        )
        self.handshakes = self._counter("handshakes_total", "Stream handshakes, by outcome.", "outcome")
        limited = self._counter("limited_total", "Times that a client ran into a limit.", "limit", known=LIMITS)
        self.limited = {limit: limited.labels(limit) for limit in LIMITS}
        self.subscriptions = self._sampled("subscriptions", "Subscriptions of all connections.")
        self.streams = self._sampled("streams", "Streams that have a listener.")
        self.commands = self._counter(
            "commands_total", "Commands received, by outcome.", "outcome", known=("accepted", "refused", "malformed")
        )
        self.resumes = self._sampled(
            "resumes_total", "Subscriptions with a cursor, by what they got: delta or snapshot.", "served"
        )
        self.books = self._sampled("books", "Instruments by the state of their book.", "state")
        self.book_age = self._sampled("book_age_seconds", "Seconds since the least recently updated live book changed.")

    def _define_access(self) -> None:
        proofs = ("accepted", "unauthorized", "forbidden", "too_many", "unavailable")
        self.auth = self._counter(
            "auth_total", "Tokens and tickets shown, by what came of it.", "outcome", known=proofs
        )
        self.tokens_issued = self._counter(
            "tokens_issued_total", "Tokens issued, by what for.", "by", known=("api_key", "identity_provider")
        )
        self.tickets_issued = self._counter("tickets_issued_total", "Tickets issued.")
        self.origins_refused = self._counter(
            "origins_refused_total", "Handshakes of web pages that are not on the list of origins."
        )
        self.restores = self._counter(
            "restores_total",
            "Sessions asked for by `restore`, by what came of it.",
            "outcome",
            known=("restored", "unknown", "unavailable"),
        )
        self.revocations = self._sampled("revocations", "Subjects and tokens known to be revoked.")
        self.revocations_age = self._sampled(
            "revocations_age_seconds", "Seconds since the list of revocations was last compared with the store's."
        )
        self.store_latency = self._latency(
            "store_latency_seconds", "Seconds that calls of Redis took, failed ones too."
        )
        self.store_failures = self._counter(
            "store_failures_total",
            "Calls of Redis without an answer, by what they were for.",
            "use",
            known=("tickets", "revocations", "connections", "sessions"),
        )

    def _define_delivery(self) -> None:
        self.updates_received = self._sampled("updates_received_total", "Updates read from Kafka and applied.")
        self.duplicates = self._sampled(
            "duplicates_dropped_total", "Updates read again and dropped by epoch and sequence."
        )
        self.chain_breaks = self._sampled(
            "chain_breaks_total",
            "Updates read from Kafka that did not continue what was read before: records between are missing.",
        )
        self.updates_offered = self._sampled(
            "updates_offered_total",
            "Updates times listeners: the sum of sent, conflated, skipped, lost and waiting, always.",
            "channel",
        )
        self.updates_waiting = self._sampled(
            "updates_waiting", "Updates that wait for a client, as they are or to be merged or skipped.", "channel"
        )
        self.updates_sent = self._sampled(
            "updates_sent_total", "Updates handed to clients, counted for each.", "channel"
        )
        self.sent_bytes = self._sampled("sent_bytes_total", "Bytes written to clients.")
        self.sends = self._sampled("sends_total", "Writes to clients: one carries all that a flush has for a client.")
        self.conflated = self._sampled(
            "conflated_total", "Updates that a slow client got merged into a later one.", "channel"
        )
        self.skipped = self._sampled(
            "skipped_total", "Updates that a slow client did not get, announced as SKIPPED.", "channel"
        )
        self.lost = self._sampled(
            "lost_total",
            "Updates still waiting for a client when its connection closed; it resumes after them.",
            "channel",
        )
        self.slow_clients = self._sampled("slow_clients", "Connections above the soft mark.")
        self.outbox_bytes = self._sampled("outbox_bytes", "Bytes waiting for clients.")
        self.flush_duration = self._latency(
            "flush_duration_seconds", "CPU seconds of a round, in which each client that waits is written to."
        )
        self.publish_to_send = self._latency(
            "publish_to_send_seconds", "Seconds from an update's Kafka timestamp to its write to a client."
        )
        self.end_to_end = self._latency(
            "end_to_end_seconds", "Seconds from the feed's receipt of a tick to the write of its update to a client."
        )

    def _counter(self, name: str, sentence: str, *labels: str, known: Iterable[str] = ()) -> Counter:
        counter = Counter(self._named(name, labels), sentence, labels, registry=self.registry)
        for value in known:  # a series that is absent until its first fault cannot be alerted on
            counter.labels(value)
        return counter

    def _gauge(self, name: str, sentence: str) -> Gauge:
        return Gauge(self._named(name, ()), sentence, registry=self.registry)

    def _sampled(self, name: str, sentence: str, *labels: str) -> Sampled:
        return Sampled(self.registry, self._named(name, labels), sentence, labels)

    def _latency(self, name: str, sentence: str) -> Latency:
        return Latency(self.registry, self._named(name, ()), sentence)

    def _named(self, name: str, labels: tuple[str, ...]) -> str:
        full = f"depthcast_{name}"
        self.labels[full] = labels
        return full

    def disconnected(self, code: int) -> None:
        """Count a closed connection. A code that is not ours came from the client, and becomes ``other``."""
        self.disconnects.labels(str(code) if code in _COUNTED_CODES else "other").inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


_COUNTED_CODES = tuple(sorted({*map(int, CloseCode), 1005, 1006}))
"""Ours, and what stands for a close frame without a code and for none (RFC 6455 section 7.4.1)."""
