"""The referee of `depthcast verify`: each way in which a client's book can be wrong fails the proof."""

from collections.abc import Sequence

import pytest

from ingest.events import BookEvent, QuoteEvent, TextLevel
from ingest.mappers import mapper_for
from protos.book import Book
from protos.messages import BookUpdate, Channel, Flag, Levels, Scale
from services.referee import OMISSIONS_MAX, OMISSIONS_OF, Referee, Report
from tests.support.captures import ticks_of

NAME = "binance:spot:BTCUSDT"
SCALE = Scale(-2, -3)


def delta(u: int, bids: bytes = b'["1.00","0.005"]') -> bytes:
    head = b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":%d,"u":%d' % (u, u)
    return head + b',"b":[%b],"a":[["1.01","0.007"]]}' % bids


def quote(u: int, bid: bytes = b"1.00", size: bytes = b"0.00500") -> bytes:
    return b'{"u":%d,"s":"BTCUSDT","b":"%b","B":"%b","a":"1.010","A":"0.007"}' % (u, bid, size)


class Game:
    """Venue sequence = our seq, for brevity."""

    def __init__(self) -> None:
        self.referee = Referee()
        self.book = Book()
        self.book.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=[(100, 5)], asks=[(101, 7)], scale=SCALE))

    def sent(self, *seqs: int) -> None:
        for seq in seqs:
            assert self.referee.sent("binance.spot", NAME, seq, delta(seq))

    def quoted(self, u: int, bid: bytes = b"1.00", size: bytes = b"0.00500") -> None:
        assert not self.referee.sent("binance.spot", NAME, 1_000 + u, quote(u, bid, size))

    def saw(self, *seqs: int, channel: Channel = Channel.RAW, depth: int = 0) -> None:
        for seq in seqs:
            self.referee.saw(NAME, channel, depth, seq, self.book, SCALE)

    def report(self) -> Report:
        report = self.referee.report()
        report.digests_passed = 1
        return report


def test_what_the_venue_said_and_the_client_has_holds() -> None:
    game = Game()
    game.sent(1, 2, 3)
    game.quoted(2)
    game.saw(2, 3)  # the first was before the snapshot
    game.saw(2, 3, channel=Channel.BOOK, depth=10)
    report = game.report()
    assert (report.updates, report.tiers_checked, report.bbo_checked, report.bbo_exact) == (2, 2, 2, 1)
    assert report.holds()


def test_an_update_that_never_came_is_lost_in_the_middle_and_at_the_end() -> None:
    for seen in ((1, 3, 4), (1, 2, 3)):
        game = Game()
        game.sent(1, 2, 3, 4)
        game.saw(*seen)
        game.saw(*seen, channel=Channel.BOOK, depth=10)
        report = game.report()
        assert report.lost == 1
        assert not report.holds()


def test_a_book_of_which_nothing_came_is_lost_as_a_whole() -> None:
    game = Game()
    game.sent(1, 2)
    assert game.report().lost == 2


def test_a_quote_at_the_books_own_sequence_must_be_right() -> None:
    game = Game()
    game.sent(1)
    game.quoted(1, b"0.99")
    game.saw(1)
    game.saw(1, channel=Channel.BOOK, depth=1)
    report = game.report()
    assert (report.bbo_exact, report.bbo_failed) == (1, 1)
    assert not report.holds()


def test_the_latest_quote_before_a_book_may_be_wrong_as_often_as_the_venue_leaves_one_out() -> None:
    game = Game()
    game.quoted(0, b"0.99")
    for seq in range(1, OMISSIONS_MAX + 1):
        game.sent(seq)
        game.saw(seq)
        game.saw(seq, channel=Channel.BOOK, depth=1)
    assert game.report().bbo_omitted == OMISSIONS_MAX
    assert game.report().holds()
    game.sent(OMISSIONS_MAX + 1)
    game.saw(OMISSIONS_MAX + 1)
    assert game.report().bbo_omitted == OMISSIONS_MAX + 1
    assert not game.report().holds()


def test_of_many_comparisons_more_may_be_left_out() -> None:
    enough = {"updates": 1, "digests_passed": 1, "tiers_checked": 1}
    assert Report(**enough, bbo_checked=OMISSIONS_OF * 2, bbo_omitted=OMISSIONS_MAX * 2).holds()
    assert not Report(**enough, bbo_checked=OMISSIONS_OF * 2 - 1, bbo_omitted=OMISSIONS_MAX * 2).holds()


@pytest.mark.parametrize(
    ("price", "size", "fails"),
    [
        (b"0.99", b"0.003", False),  # stayed, and all above it was changed
        (b"0.990", b"0.0030", False),
        (b"0.99", b"0.004", True),  # stayed, with another size
        (b"0.98", b"0.002", True),  # stayed, below the one that stayed, too
        (b"1.00", b"0.009", False),  # was there for a while with some size
        (b"1.005", b"0.001", False),  # came and went
        (b"1.001", b"0.001", True),  # nobody spoke of it
        (b"0.97", b"0.001", True),  # was changed, below what stayed
    ],
)
@pytest.mark.parametrize("known", ["the venue's word first", "the client's book first"])
def test_a_quote_between_two_books_is_of_a_level_that_stayed_or_of_one_that_was_changed(
    price: bytes, size: bytes, fails: bool, known: str
) -> None:
    game = Game()
    game.book.apply(BookUpdate(bids=[(99, 3), (98, 2), (97, 8)]))
    game.sent(1)
    game.saw(1)
    changes = delta(3, b'["1.00","0.006"],["1.005","0"],["0.97","0.001"]')
    for step in ("sent", "saw") if known == "the venue's word first" else ("saw", "sent"):
        if step == "sent":
            game.referee.sent("binance.spot", NAME, 3, changes)
        else:
            game.book.apply(BookUpdate(bids=[(100, 6), (97, 1)]))
            game.saw(3)
    game.saw(3, channel=Channel.BOOK, depth=1)
    game.quoted(0)  # before the first book: cannot be judged
    game.quoted(1)  # nor can that of the first
    game.quoted(2, price, size)
    report = game.report()
    assert (report.quotes_checked, report.quotes_failed) == (1, fails)
    assert report.holds() is not fails


def test_a_quote_beside_a_book_that_the_client_did_not_have_is_not_judged() -> None:
    for missing in (1, 3):
        game = Game()
        game.sent(1, 3)
        game.saw(4 - missing)
        game.quoted(2)
        assert game.report().quotes_checked == 0


def test_a_tier_that_is_not_the_top_of_the_book_fails() -> None:
    game = Game()
    game.sent(1)
    game.saw(1)
    game.book.apply(BookUpdate(bids=[(100, 6)]))
    game.saw(1, channel=Channel.BOOK, depth=10)
    report = game.report()
    assert (report.tiers_checked, report.tiers_failed) == (1, 1)
    assert not report.holds()


@pytest.mark.captures
@pytest.mark.parametrize(("feed", "equal", "of"), [("binance.spot", 753, 28_038), ("binance.usdm", 782, 66_056)])
def test_a_quote_is_rarely_what_the_latest_book_said(feed: str, equal: int, of: int) -> None:
    """Why quotes are held against the books on both sides of them: the one before alone is right in 1 of 60."""
    whole = [e for it in ticks_of(feed) for e in mapper_for(it.feed).parse(it.feed, it.instrument, it.value)]
    (start,) = (it for it in whole if isinstance(it, BookEvent) and it.snapshot)
    events = [it for it in whole if isinstance(it, BookEvent | QuoteEvent) and it.last > start.last]
    book, found, equals = Book(), 0, 0
    book.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=levels(start.bids), asks=levels(start.asks)))
    best = None
    for event in sorted(events, key=lambda it: (it.last, isinstance(it, QuoteEvent))):
        if isinstance(event, BookEvent):
            book.apply(BookUpdate(bids=levels(event.bids), asks=levels(event.asks)))
            best = book.top(1)
        elif best is not None:
            found += 1
            equals += best == (levels([event.bid]), levels([event.ask]))
    assert (equals, found) == (equal, of)


def levels(texts: Sequence[TextLevel]) -> Levels:
    """All prices of a feed have the same decimals, and so have all sizes."""
    return [(int(price.replace(".", "")), int(size.replace(".", ""))) for price, size in texts]
