"""What the tests of ingest share."""

from collections.abc import Iterator

import pytest

from ingest import scaling
from ingest.mappers import fields
from protos import ladder
from tests.support.native import native


@pytest.fixture(scope="module", params=["python", "native"])
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the module twice: with the loops over levels in Python, and with those in C."""
    with pytest.MonkeyPatch.context() as patch:
        module = native("ingest.native") if request.param == "native" else None
        patch.setattr(fields, "are_plain", module and module.are_plain)
        patch.setattr(scaling, "convert", module and module.convert)
        patch.setattr(ladder, "new_ladder", native("protos.native").Ladder if module else ladder.PlainLadder)
        yield
