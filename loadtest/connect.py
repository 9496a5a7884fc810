"""Idle connections: what each costs in memory, and how fast they come."""

from typing import Any

from loadtest.fanout import Load, chosen, connected
from loadtest.swarm import Swarm
from loadtest.target import Server

WARM_UP = 100
"""Connections made before the memory is measured for the first time: they load what is loaded once."""
AT_ONCE = 128


async def measure_connections(server: Server, clients: int, instruments: int, per_client: int) -> dict[str, Any]:
    """Connect and subscribe ``clients``, which then hear nothing but pings.

    Raises:
        LoadTestError: It cannot be measured; the message says why.
    """
    Load(clients, instruments, per_client).check()
    try:
        target, _ = await server.start(instruments)
        warm = Swarm(target, chosen(Load(WARM_UP, instruments, per_client), target), measured=0, checked=0)
        swarm = Swarm(target, chosen(Load(clients, instruments, per_client), target), measured=0)
        async with connected(warm):
            before = target.usage()
            async with connected(swarm, AT_ONCE):
                after = target.usage()
                swarm.check_alive()
        return {
            "scenario": "connect",
            "server": target.name,
            "clients": clients,
            "per_client": per_client,
            "kib_per_connection": round((after.rss_kib - before.rss_kib) / clients, 2) if target.pid else None,
            "connects_per_s": round(clients / swarm.connect_s, 1),
            "refused": swarm.refused,
            "seconds": round(swarm.connect_s, 3),
            "server_cpu_ms_per_connection": round(1e3 * (after.cpu_s - before.cpu_s) / clients, 3),
            "server_rss_mib": round(after.rss_kib / 1024, 1),
        }
    finally:
        await server.stop()
