"""The proof on real data: every capture through all processes, on both brokers, judged in the client's hands.

The counts are facts about the captures: records, those with a checksum, book updates that follow a quote and those
that meet one of the same sequence, quotes between two of the client's books.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.captures import CAPTURES, FILES
from tests.support.kafka_server import RealBroker

CHECKSUMS = {"kraken": 2551, "okx": 290}
QUOTES = {"binance.spot": 3449, "binance.usdm": 6546}
EXACT = {"binance.spot": 564, "binance.usdm": 629}
BETWEEN = {"binance.spot": 28_029, "binance.usdm": 66_050}
MESSAGES = {
    "binance.spot": 41249,
    "binance.usdm": 93954,
    "bybit": 2412,
    "coinbase": 1013,
    "deribit": 135,
    "kraken": 2561,
    "okx": 392,
}
TIMEOUT_S = 240


def verify(path: Path, feed: str, *options: str) -> tuple[int, dict[str, int]]:
    """Exit code and report of `depthcast verify`."""
    command = (sys.executable, "-m", "services", "verify", str(path), "--feed", feed, "--json", *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.stdout, done.stderr
    report: dict[str, int] = json.loads(done.stdout)
    return done.returncode, report


def holds(feed: str, *options: str) -> None:
    code, report = verify(CAPTURES / FILES[feed], feed, *options)
    assert code == 0, report
    assert report["messages"] == MESSAGES[feed]
    assert (report["checksums_passed"], report["checksums_failed"]) == (CHECKSUMS.get(feed, 0), 0)
    assert (report["bbo_checked"], report["bbo_exact"]) == (QUOTES.get(feed, 0), EXACT.get(feed, 0))
    assert (report["quotes_checked"], report["quotes_failed"]) == (BETWEEN.get(feed, 0), 0)
    assert (report["bbo_failed"], report["bbo_omitted"], report["lost"]) == (0, 0, 0)
    assert (report["gaps"], report["digests_failed"], report["tiers_failed"], report["dlq"]) == (0, 0, 0, 0)
    assert report["updates"] > 0
    assert report["digests_passed"] > 0
    assert report["tiers_checked"] > 0


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("feed", FILES)
def test_the_clients_book_is_the_venues_book(feed: str) -> None:
    holds(feed)


@pytest.mark.kafka
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("feed", FILES)
def test_the_clients_book_is_the_venues_book_on_a_real_kafka(feed: str, kafka_server: RealBroker) -> None:
    holds(feed, "--kafka", kafka_server.bootstrap)


@pytest.mark.timeout(TIMEOUT_S)
def test_a_changed_size_fails_the_proof(tmp_path: Path) -> None:
    """The proof can fail: one digit of one Kraken size differs from what the venue summed up."""
    lines = (CAPTURES / FILES["kraken"]).read_bytes().splitlines(keepends=True)
    index = next(i for i, line in enumerate(lines) if b'"c":"' in line and b'.00000000"' not in line.split(b'"c"')[0])
    head, _, tail = lines[index].partition(b'","16186')  # the level's time follows its size
    lines[index] = head[:-1] + (b"1" if head[-1:] != b"1" else b"2") + b'","16186' + tail
    changed = tmp_path / "changed"
    changed.write_bytes(b"".join(lines[: index + 200]))
    code, report = verify(changed, "kraken")
    assert code == 1
    assert report["gaps"] > 0
    assert report["checksums_failed"] > 0
