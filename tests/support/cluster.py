"""Three real Kafka brokers that replicate among each other, each behind a proxy of its own.

Clients use ``bootstrap``, the proxies: that is what the brokers advertise. The brokers talk to each other directly.
"""

import signal
from contextlib import suppress

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.support.kafka_server import RealBroker, _free_ports, _Node
from tests.support.proxy import Proxy

NODES = 3
_PROPERTIES = {
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    "replica.lag.time.max.ms": "3000",
    "replica.fetch.wait.max.ms": "100",
}
"""A dead broker is noticed in some seconds; Kafka's defaults take up to half a minute."""


class Cluster(RealBroker):
    """Start, use ``bootstrap``, stop. All calls block."""

    def __init__(self) -> None:
        super().__init__(NODES, java=("-Xmx384m", "-XX:TieredStopAtLevel=1"), properties=_PROPERTIES)
        ports = _free_ports(NODES)
        self._listeners = dict(zip((node.number for node in self.nodes), ports, strict=True))
        self.proxies = {number: Proxy(("127.0.0.1", port)) for number, port in self._listeners.items()}
        for proxy in self.proxies.values():
            proxy.start()

    @property
    def bootstrap(self) -> str:
        return ",".join(proxy.address for proxy in self.proxies.values())

    def properties_of(self, node: _Node) -> dict[str, str]:
        own = f"PLAIN://127.0.0.1:{node.port}"
        proxied = f"PROXIED://127.0.0.1:{self._listeners[node.number]}"
        advertised = f"PROXIED://{self.proxies[node.number].address}"
        return {
            **_PROPERTIES,
            "listeners": f"{own},{proxied},CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"{own},{advertised}",
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        }

    def leader(self, topic: str, partition: int) -> int:
        """Number of the node that leads a partition; -1 while none does."""
        running = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes if node.process is not None)
        with suppress(KafkaException):
            topics = AdminClient({"bootstrap.servers": running, "log_level": 0}).list_topics(topic, timeout=5).topics
            return int(topics[topic].partitions[partition].leader)
        return -1

    def all_down(self) -> None:
        """SIGKILL of every node at once."""
        for node in self.nodes:
            if node.process is not None:
                node.process.send_signal(signal.SIGKILL)
        for node in self.nodes:
            node.stop(signal.SIGKILL)

    def all_up(self) -> None:
        """Start those that are down."""
        for node in self.nodes:
            if node.process is None:
                node.start(self._java)
        self.ready()

    def heal(self) -> None:
        """No fault of a proxy any more, every node up."""
        for proxy in self.proxies.values():
            proxy.heal()
        self.all_up()

    def stop(self) -> None:
        super().stop()
        for proxy in self.proxies.values():
            proxy.stop()
