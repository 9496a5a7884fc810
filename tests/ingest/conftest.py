"""What the tests of ingest share."""

from collections.abc import Iterator

import pytest

from ingest import book, scaling
from ingest.mappers import fields
from tests.support.native import native


@pytest.fixture(scope="module", params=["python", "native"])
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the module twice: with the loops over levels in Python, and with those of ``ingest/native.c``."""
    with pytest.MonkeyPatch.context() as patch:
        module = native("ingest.native") if request.param == "native" else None
        patch.setattr(fields, "are_plain", module and module.are_plain)
        patch.setattr(scaling, "convert", module and module.convert)
        patch.setattr(book, "new_ladder", module.Ladder if module else book.PlainLadder)
        yield
