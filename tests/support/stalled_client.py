"""A client process that a test can stall: the SDK on the given stream, and a line of JSON for each thing that happens.

python -m tests.support.stalled_client URL INSTRUMENT
"""

import asyncio
import json
import sys

from services.client.aio import connect
from services.client.events import BrokenChain, DigestChecked, Disconnected, Event, Started


def line(event: Event) -> dict[str, object]:
    if isinstance(event, Started):
        return {"event": "started", "resumed": event.resumed}
    if isinstance(event, DigestChecked):
        return {"event": "digest", "passed": event.passed, "live": event.subscription.live}
    return {"event": type(event).__name__.lower()}


async def main(url: str, instrument: str) -> None:
    async with connect(url) as client:
        await client.subscribe(instrument)
        async for event in client:
            if isinstance(event, Started | DigestChecked | Disconnected | BrokenChain):
                print(json.dumps(line(event)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
