"""An embedded Kafka broker: librdkafka's mock cluster, in this process's threads. For `depthcast dev` and tests.

It speaks enough of the protocol for our clients (produce with idempotence, fetch, groups) and starts in milliseconds.
It is no Kafka: about 5 MB or 100,000 records are kept per partition and older ones dropped, nothing is compacted or
stored, a fetch that finds nothing is answered only when its ``fetch_max_wait_ms`` ends (set 5), topics cannot be
created or described over the network, and a topic that is merely asked for springs up with 4 partitions. Groups work
with one member: with two, one that is late to sync is refused, and a rebalance takes all but a second of the session
timeout. Measured: a record is acknowledged in 0.3 ms; 450,000 records of 150 bytes a second in, 160,000 out.
"""

import ctypes
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

from confluent_kafka import cimpl

_PRODUCER = 0
_ERROR_BYTES = 256


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:  # noqa: ANN401
    function = getattr(_librdkafka, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


_librdkafka = ctypes.CDLL(cimpl.__file__)
"""The Python API starts a mock cluster but cannot create topics in it; the C API (rdkafka_mock.h) can."""
_pointer, _text, _int = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_conf_new = _function("rd_kafka_conf_new", _pointer)
_conf_set = _function("rd_kafka_conf_set", _int, _pointer, _text, _text, _text, ctypes.c_size_t)
_client_new = _function("rd_kafka_new", _pointer, _int, _pointer, _text, ctypes.c_size_t)
_client_destroy = _function("rd_kafka_destroy", None, _pointer)
_cluster_new = _function("rd_kafka_mock_cluster_new", _pointer, _pointer, _int)
_cluster_destroy = _function("rd_kafka_mock_cluster_destroy", None, _pointer)
_bootstraps = _function("rd_kafka_mock_cluster_bootstraps", _text, _pointer)
_topic_create = _function("rd_kafka_mock_topic_create", _int, _pointer, _text, _int, _int)
_rebalance_delay = _function("rd_kafka_mock_group_initial_rebalance_delay_ms", None, _pointer, ctypes.c_int32)
_broker_down = _function("rd_kafka_mock_broker_set_down", _int, _pointer, ctypes.c_int32)
_broker_up = _function("rd_kafka_mock_broker_set_up", _int, _pointer, ctypes.c_int32)


_NUDGE_S = 0.005


class EmbeddedBroker:
    """Start, create topics, use ``bootstrap``, stop. All calls block for milliseconds."""

    def __init__(self) -> None:
        self._client: int | None = None
        self._cluster: int | None = None

    def start(self) -> str:
        """Listen on a free port of the loopback interface; returns ``host:port``."""
        if self._cluster is None:
            error = ctypes.create_string_buffer(_ERROR_BYTES)
            conf = _conf_new()
            _conf_set(conf, b"log_level", b"0", error, _ERROR_BYTES)
            self._client = _client_new(_PRODUCER, conf, error, _ERROR_BYTES)
            if not self._client:
                raise RuntimeError(f"librdkafka: {error.value.decode()}")
            self._cluster = _cluster_new(self._client, 1)
            self._asked(_rebalance_delay, 0)
        return self.bootstrap

    @property
    def bootstrap(self) -> str:
        """``host:port`` while it runs."""
        address: bytes = _bootstraps(self._running())
        return address.decode()

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic; its partition count cannot change later.

        Raises:
            ValueError: It exists.
        """
        if self._asked(_topic_create, name.encode(), partitions, 1):
            raise ValueError(f"topic {name} exists")

    def pause(self) -> None:
        """Drop all connections and refuse new ones, as a broker that crashed; nothing is lost."""
        self._asked(_broker_down, 1)

    def resume(self) -> None:
        """Come back after ``pause``."""
        self._asked(_broker_up, 1)

    def stop(self) -> None:
        """Close the port and forget everything. Harmless when stopped."""
        if self._cluster is not None:
            self._asked(_cluster_destroy)
            _client_destroy(self._client)
            self._cluster = self._client = None

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        """Call what the cluster's own thread has to do. That thread often misses that it is asked, and looks again
        after a second or when a connection comes: two of three brokers took that second to start."""
        cluster, address, done = self._running(), self.bootstrap, Event()
        host, port = address.split(":")

        def nudge() -> None:
            while not done.wait(_NUDGE_S):
                with suppress(OSError):
                    socket.create_connection((host, int(port)), 1).close()

        nudging = Thread(target=nudge, name="nudge-broker")
        nudging.start()
        try:
            return function(cluster, *arguments)
        finally:
            done.set()
            nudging.join()

    def _running(self) -> int:
        if self._cluster is None:
            raise RuntimeError("the embedded broker is not started")
        return self._cluster
