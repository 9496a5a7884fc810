"""Idle connections: what each costs in memory, and how fast they come."""

from typing import Any

from loadtest.instruments import subscriptions
from loadtest.progress import Progress
from loadtest.servers import Server
from loadtest.swarm import Swarm

WARM_UP = 100
"""Connections made before the memory is measured for the first time: they load what is loaded once."""
AT_ONCE = 128


async def measure_connections(server: Server, clients: int, instruments: int, per_client: int) -> dict[str, Any]:
    """Connect and subscribe ``clients``, which then hear nothing but pings."""
    try:
        target, _ = await server.start(instruments)
        warm = Swarm(target, subscriptions(WARM_UP, instruments, per_client), measured=0, checked=0)
        await warm.connect()
        before = target.usage()
        swarm = Swarm(target, subscriptions(clients, instruments, per_client), measured=0)
        progress = Progress(swarm.progress)
        try:
            took_s = await swarm.connect(AT_ONCE)
        finally:
            progress.stop()
        after = target.usage()
        await swarm.close()
        await warm.close()
        return {
            "scenario": "connect",
            "server": target.name,
            "clients": clients,
            "per_client": per_client,
            "kib_per_connection": round((after.rss_kib - before.rss_kib) / clients, 2),
            "connects_per_s": round(clients / took_s, 1),
            "seconds": round(took_s, 3),
            "server_cpu_ms_per_connection": round(1e3 * (after.cpu_s - before.cpu_s) / clients, 3),
            "server_rss_mib": round(after.rss_kib / 1024, 1),
            "closed": {str(code): count for code, count in swarm.closed_by.items()},
        }
    finally:
        await server.stop()
