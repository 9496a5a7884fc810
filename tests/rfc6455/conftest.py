"""One endpoint for all cases of a module, and the two ways to send a case."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from protos.codec import CODECS, Codec
from tests.support.endpoint import Rig, running
from tests.support.quiet import no_traceback

__all__ = ["no_traceback"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(commands_burst=5_000) as one:
        yield one


@pytest.fixture(params=CODECS, ids=lambda name: name.rpartition(".")[2])
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


@pytest.fixture(params=[False, True], ids=["whole", "octets"])
def octets(request: pytest.FixtureRequest) -> bool:
    chopped: bool = request.param
    return chopped
