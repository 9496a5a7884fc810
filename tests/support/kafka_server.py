"""A real Apache Kafka (KRaft) on this machine, for tests and benchmarks: `python -m tests.support.kafka_server --help`.

Needs Java 17 and, the first time, Maven. The jars come to ``.cache/kafka``. Each node is a JVM of its own and both
broker and controller, with one plain listener and one for SASL_SSL (user depthcast, SCRAM-SHA-512).
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

CACHE = Path(__file__).parents[2] / ".cache" / "kafka"
USER, PASSWORD = "depthcast", "a-password-of-the-tests"
CLUSTER_ID = "depthcast-tests-0000AA"
START_S = 60.0
_POM = Path(__file__).with_name("pom.xml")
_STORE_PASSWORD = "changeit"


def missing() -> str | None:
    """Why no Kafka can be started here and how to mend it; None if one can."""
    if shutil.which("java") is None:
        return (
            "Java is missing: install a JRE, version 17 or later (Debian: apt-get install default-jre-headless maven)"
        )
    if not (CACHE / "libs").is_dir() and shutil.which("mvn") is None:
        return "Maven is missing: it fetches Kafka's jars once (Debian: apt-get install maven)"
    return None


def jars() -> Path:
    """Directory with Kafka's jars, fetched if need be. Safe to call from several processes."""
    libs = CACHE / "libs"
    if not libs.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            _run("mvn", "-B", "-q", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={fresh}/libs")
            with suppress(OSError):  # another process was quicker
                Path(fresh, "libs").rename(libs)
    return libs


def tls() -> Path:
    """Directory with ``server.p12`` and, for clients, ``ca.pem``: a self-signed certificate for 127.0.0.1."""
    directory = CACHE / "tls"
    if not directory.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            store = ["-keystore", f"{fresh}/tls/server.p12", "-storepass", _STORE_PASSWORD, "-alias", "kafka"]
            Path(fresh, "tls").mkdir()
            _run(
                *("keytool", "-genkeypair", *store, "-keyalg", "EC", "-validity", "3650", "-dname", "CN=127.0.0.1"),
                *("-ext", "san=ip:127.0.0.1,dns:localhost"),
            )
            _run("keytool", "-exportcert", "-rfc", *store, "-file", f"{fresh}/tls/ca.pem")
            with suppress(OSError):
                Path(fresh, "tls").rename(directory)
    return directory


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class _Node:
    def __init__(self, number: int, directory: Path, ports: list[int]) -> None:
        self.number, self.directory = number, directory
        self.port, self.secure_port, self.controller_port = ports
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)

    @property
    def properties(self) -> Path:
        return self.directory / "server.properties"

    def configure(self, nodes: "list[_Node]", extra: dict[str, str]) -> None:
        copies = str(len(nodes))
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(self.number),
            "controller.quorum.voters": ",".join(f"{n.number}@127.0.0.1:{n.controller_port}" for n in nodes),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "listeners": f"PLAIN://127.0.0.1:{self.port},SECURE://127.0.0.1:{self.secure_port},"
            f"CONTROLLER://127.0.0.1:{self.controller_port}",
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(tls() / "server.p12"),
            "ssl.keystore.password": _STORE_PASSWORD,
            "log.dirs": str(self.directory / "log"),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": copies,
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "500",
            "log.retention.check.interval.ms": "1000",
            "log.initial.task.delay.ms": "500",
            "log.cleaner.backoff.ms": "200",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            "controlled.shutdown.enable": str(len(nodes) > 1).lower(),
            **extra,
        }
        self.properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def format(self) -> None:
        _run(
            *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{jars()}/*", "kafka.tools.StorageTool"),
            *("format", "-t", CLUSTER_ID, "-c", str(self.properties)),
            *("--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
        )

    def start(self, java: tuple[str, ...]) -> None:
        with Path(self.directory, "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                (
                    *("java", *java, "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
                    *("-cp", f"{jars()}/*", "kafka.Kafka", self.properties),
                ),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, sig: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(sig)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


class RealBroker:
    """Start, use ``bootstrap``, stop. All calls block.

    Args:
        nodes: How many; they replicate among each other, and a majority must live.
        java: Options of each JVM. The default starts quickly; for figures, leave the compiler alone.
        properties: Further lines of server.properties.
    """

    def __init__(
        self,
        nodes: int = 1,
        java: tuple[str, ...] = ("-Xmx512m", "-XX:TieredStopAtLevel=1"),
        properties: dict[str, str] | None = None,
    ) -> None:
        self._java, self._properties = java, properties or {}
        self.directory = Path(tempfile.mkdtemp(prefix="depthcast-kafka-"))
        ports = _free_ports(3 * nodes)
        self.nodes = [_Node(i + 1, self.directory / str(i + 1), ports[3 * i : 3 * i + 3]) for i in range(nodes)]

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def secure_bootstrap(self) -> str:
        """Listeners for SASL_SSL with SCRAM-SHA-512, ``USER`` and ``PASSWORD``; the authority is ``tls()/ca.pem``."""
        return ",".join(f"127.0.0.1:{node.secure_port}" for node in self.nodes)

    def start(self) -> str:
        """Start all nodes and wait until they answer; returns ``host:port`` of each.

        Raises:
            RuntimeError: Kafka does not come up; the message has the end of its log.
        """
        for node in self.nodes:
            node.configure(self.nodes, self.properties_of(node))
        for node in self.nodes:
            node.format()
        for node in self.nodes:
            node.start(self._java)
        self.ready()
        return self.bootstrap

    def properties_of(self, node: _Node) -> dict[str, str]:  # noqa: ARG002
        """Further lines of this node's server.properties."""
        return self._properties

    def ready(self) -> None:
        """Wait until every started node is a member of the cluster."""
        started = [node for node in self.nodes if node.process is not None]
        admin: AdminClient | None = None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for node in started:
                if node.process is not None and node.process.poll() is not None:
                    raise RuntimeError(f"Kafka ended: {self._log(node)}")
            with suppress(KafkaException, OSError):
                for node in started:
                    socket.create_connection(("127.0.0.1", node.port), timeout=1).close()
                admin = admin or AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
                if {node.number for node in started} <= admin.list_topics(timeout=1).brokers.keys():
                    return
            time.sleep(0.05)
        raise RuntimeError(f"Kafka is not up after {START_S:.0f} s: {self._log(self.nodes[0])}")

    @staticmethod
    def _log(node: _Node) -> str:
        return Path(node.directory, "server.log").read_text(errors="replace")[-2000:]

    def stop_node(self, number: int, sig: signal.Signals = signal.SIGTERM) -> None:
        """Stop one node; with SIGKILL as by a power cut."""
        self.nodes[number - 1].stop(sig)

    def start_node(self, number: int) -> None:
        """Start a stopped node again, on the same port with the same data."""
        self.nodes[number - 1].start(self._java)
        self.ready()

    def stop(self) -> None:
        """Stop all nodes and delete their data."""
        for node in self.nodes:
            node.stop(signal.SIGKILL)  # nothing of it is needed any more, and it is quick
        shutil.rmtree(self.directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a real Kafka until interrupted; prints its HOST:PORT.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--heap-mb", type=int, default=512)
    options = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker = RealBroker(options.nodes, java=(f"-Xmx{options.heap_mb}m",))
    try:
        print(broker.start(), flush=True)
        print(f"pid {os.getpid()}; data in {broker.directory}", file=sys.stderr, flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
