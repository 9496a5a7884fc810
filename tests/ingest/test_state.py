"""The bytes in which an instrument's state is kept: refused when another version, or nobody, wrote them."""

from dataclasses import replace

import msgpack
import pytest

from ingest.pipeline import Pipeline
from ingest.state import VERSION, feed_of
from protos.messages import InstrumentState
from protos.wire import CodecError
from tests.support.ticklog import log_of, run

NAME = "kraken:spot:XBT/CHF"


@pytest.fixture(scope="module")
def state() -> InstrumentState:
    ours = Pipeline(0)
    run(ours, log_of("kraken", 300))
    return ours.changed()[NAME]


def test_a_state_names_its_feed(state: InstrumentState) -> None:
    assert feed_of(state) == "kraken"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", msgpack.packb([VERSION])])
def test_what_is_no_state_is_refused(state: InstrumentState, data: bytes) -> None:
    with pytest.raises(CodecError, match="cannot be read"):
        Pipeline(0).restore(NAME, replace(state, ingest_state=data))


@pytest.mark.parametrize("head", [(VERSION + 1, "kraken"), (VERSION, 7)])
def test_a_state_of_another_version_is_refused(state: InstrumentState, head: tuple[object, ...]) -> None:
    with pytest.raises(CodecError, match=f"reads version {VERSION}"):
        Pipeline(0).restore(NAME, replace(state, ingest_state=msgpack.packb([*head, 1, 2, 3])))


def test_a_state_that_is_cut_short_leaves_no_instrument(state: InstrumentState) -> None:
    fields = msgpack.unpackb(state.ingest_state)
    ours = Pipeline(0)
    with pytest.raises(CodecError, match="cannot be read"):
        ours.restore(NAME, replace(state, ingest_state=msgpack.packb(fields[:-1])))
    ours.all_changed()
    assert ours.changed() == {}


def test_all_states_can_be_had_again(state: InstrumentState) -> None:
    ours = Pipeline(0)
    run(ours, log_of("kraken", 300))
    changed = ours.changed()
    assert changed[NAME] == state
    assert ours.changed() == {}
    ours.all_changed()
    assert ours.changed() == changed
