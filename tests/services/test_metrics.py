import shutil
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics import LATENCY_BUCKETS_S, Latency, Metrics
from tests.support.needs import need


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, label values) -> value, as Prometheus reads them."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_counts_of_pure_cores_are_read_at_the_scrape() -> None:
    metrics = Metrics()
    open_connections = [1, 2, 3]
    metrics.connections.read = lambda: len(open_connections)
    metrics.kafka_lag.read = lambda: {("depthcast.market", "0"): 7, ("depthcast.market", "1"): 9}
    open_connections.append(4)
    read = samples(metrics)
    assert read["depthcast_connections", ()] == 4
    assert read["depthcast_kafka_lag_records", ("1", "depthcast.market")] == 9
    assert not any(name == "depthcast_outbox_bytes" for name, _ in read), "nobody said how to read it"


def test_counter_read_at_the_scrape_is_a_counter() -> None:
    metrics = Metrics()
    metrics.sends.read = lambda: 12
    assert samples(metrics)["depthcast_sends_total", ()] == 12
    assert b"# TYPE depthcast_sends_total counter" in metrics.exposition()


def test_latency_falls_into_the_bucket_that_includes_its_bound() -> None:
    metrics = Metrics()
    metrics.end_to_end.observe(0.001)
    metrics.end_to_end.observe(0.0011, count=10)
    metrics.end_to_end.observe(99)
    metrics.end_to_end.observe(-5)
    read = samples(metrics)
    assert read["depthcast_end_to_end_seconds_bucket", ("0.0005",)] == 1, "a negative one counts as 0"
    assert read["depthcast_end_to_end_seconds_bucket", ("0.001",)] == 2
    assert read["depthcast_end_to_end_seconds_bucket", ("0.0025",)] == 12
    assert read["depthcast_end_to_end_seconds_bucket", ("2.5",)] == 12
    assert read["depthcast_end_to_end_seconds_bucket", ("+Inf",)] == 13
    assert read["depthcast_end_to_end_seconds_count", ()] == 13
    assert read["depthcast_end_to_end_seconds_sum", ()] == pytest.approx(99.012)


def test_quantiles_are_interpolated_like_prometheus_does() -> None:
    latency = Metrics().flush_duration
    assert latency.quantile_ms(0.5) == 0
    latency.observe(0.003, count=100)
    assert latency.quantile_ms(0.5) == pytest.approx(2.5 + 0.5 * 2.5)
    latency.observe(0.2, count=100)
    assert latency.quantile_ms(0.75) == pytest.approx(100 + 0.5 * 150)
    latency.observe(10, count=1000)
    assert latency.quantile_ms(0.99) == 2500


def test_buckets_cover_100_us_to_2500_ms() -> None:
    assert (LATENCY_BUCKETS_S[0], LATENCY_BUCKETS_S[-1]) == (0.0001, 2.5)
    assert list(LATENCY_BUCKETS_S) == sorted(set(LATENCY_BUCKETS_S))


def test_close_code_from_a_client_makes_no_series() -> None:
    metrics = Metrics()
    before = len(samples(metrics))
    for code in (4008, 3000, 3001, 4999):
        metrics.disconnected(code)
    read = samples(metrics)
    assert len(read) == before
    assert read["depthcast_disconnects_total", ("4008",)] == 1
    assert read["depthcast_disconnects_total", ("other",)] == 3


def test_faults_have_a_series_before_the_first_one() -> None:
    read = samples(Metrics())
    assert read["depthcast_gaps_total", ("sequence_gap",)] == 0
    assert read["depthcast_checksums_total", ("failed",)] == 0
    assert read["depthcast_disconnects_total", ("4008",)] == 0


def test_two_processes_in_one_do_not_share_a_registry() -> None:
    first, second = Metrics(), Metrics()
    first.connects.inc()
    assert samples(second)["depthcast_connects_total", ()] == 0


def test_observing_is_cheap() -> None:
    """Guards the reason for `Latency`: prometheus-client's own histogram takes 1 to 2 us. Best of 20."""
    latency: Latency = Metrics().end_to_end

    def once() -> float:
        start = time.perf_counter()
        for _ in range(2_000):
            latency.observe(0.0042)
        return (time.perf_counter() - start) / 2_000

    assert min(once() for _ in range(20)) < 1.5e-6


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool") or shutil.which("promtool", path=".cache/tools/usr/bin")
    need("" if promtool else "promtool is not installed: apt-get install prometheus brings it")
    metrics = Metrics()
    metrics.connections.read = lambda: 1
    metrics.conflated.read = lambda: {("book",): 1}
    metrics.disconnected(1000)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.exposition(), capture_output=True, check=False
    )
    assert (checked.stdout + checked.stderr).decode() == ""
    assert checked.returncode == 0
