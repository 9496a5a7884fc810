"""What an ingest worker tells Prometheus."""

import time
from collections.abc import Callable, Iterable

from ingest.pipeline import Outputs, Pipeline
from services.kafka import GroupReader
from services.metrics import Metrics


def observe(metrics: Metrics, reader: GroupReader, checkpoint_at: Callable[[], float]) -> None:
    """Let the scrape read the worker. ``checkpoint_at``: time of the last checkpoint, on the monotonic clock."""
    metrics.kafka_lag.read = lambda: {(topic, str(p)): float(lag) for (topic, p), lag in reader.lag().items()}
    metrics.kafka_last_poll_age.read = reader.last_poll_age_s
    metrics.checkpoint_age.read = lambda: time.monotonic() - checkpoint_at()


def observe_outputs(metrics: Metrics, outputs: Outputs) -> None:
    """Count what is being written for one record."""
    if outputs.market:
        age_ns = time.time_ns() - outputs.market[-1][1].ts_received_ns
        metrics.tick_to_publish.observe(age_ns / 1e9, len(outputs.market))
    if outputs.dead:
        metrics.dead_letters.labels(outputs.dead.reason).inc()


def observe_batch(metrics: Metrics, topic: str, records: int, pipelines: Iterable[Pipeline]) -> None:
    """Count what a batch of records did."""
    if records == 0:
        return
    metrics.kafka_records.labels(topic).inc(records)
    for pipeline in pipelines:
        counts = pipeline.take_counts()
        metrics.updates_published.inc(counts.updates)
        metrics.epochs.inc(counts.epochs)
        metrics.crossed.inc(counts.crossed)
        metrics.checksums.labels("passed").inc(counts.checksums_passed)
        metrics.checksums.labels("failed").inc(counts.checksums_failed)
        for reason, gaps in counts.gaps.items():
            metrics.gaps.labels(reason.name.lower()).inc(gaps)
