"""docs/protocol.md shows the session as it is."""

from streamer.session import _TABLE
from tests.support.session_drawing import COMMANDS, PAGE, drawing, page_with


def test_the_documented_drawing_is_what_the_session_does() -> None:
    assert PAGE.read_text() == page_with(drawing()), "draw it anew: python -m tests.support.session_drawing"


def test_every_command_of_the_table_is_played() -> None:
    assert {kind for row in _TABLE.values() for kind in row} == COMMANDS.keys()
