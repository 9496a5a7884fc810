"""One message through a mapper."""

import orjson
import pytest

from ingest.events import BookEvent, Event, MapError
from ingest.mappers import mapper_for


def only(feed: str, instrument: str, message: object, hint: str = "") -> Event:
    """The one event of a message that is one record with the same bytes."""
    value = message if isinstance(message, bytes) else orjson.dumps(message)
    mapper = mapper_for(feed)
    assert mapper.split(feed, value, hint) == [(instrument, value)]
    (event,) = mapper.parse(feed, instrument, value)
    return event


def book(feed: str, instrument: str, message: object, hint: str = "") -> BookEvent:
    event = only(feed, instrument, message, hint)
    assert isinstance(event, BookEvent)
    return event


def refused(feed: str, instrument: str, message: object, content_type: str = "") -> str:
    """The reason for which `parse` refuses it."""
    value = message if isinstance(message, bytes) else orjson.dumps(message)
    with pytest.raises(MapError) as caught:
        mapper_for(feed).parse(feed, instrument, value, content_type)
    return caught.value.reason
