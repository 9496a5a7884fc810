"""The referee of `depthcast verify`: each way in which a client's book can be wrong fails the proof."""

from protos.book import Book
from protos.messages import BookUpdate, Channel, Flag, Scale
from services.referee import OMISSIONS_MAX, Referee, Report

NAME = "binance:spot:BTCUSDT"
SCALE = Scale(-2, -3)


def delta(u: int) -> bytes:
    return b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":%d,"u":%d,"b":[["1.00","0.005"]],"a":[["1.01","0.007"]]}' % (
        u,
        u,
    )


def quote(u: int, bid: bytes = b"1.00") -> bytes:
    return b'{"u":%d,"s":"BTCUSDT","b":"%b","B":"0.00500","a":"1.010","A":"0.007"}' % (u, bid)


class Game:
    """Venue sequence = our seq, for brevity."""

    def __init__(self) -> None:
        self.referee = Referee()
        self.book = Book()
        self.book.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=[(100, 5)], asks=[(101, 7)], scale=SCALE))

    def sent(self, *seqs: int) -> None:
        for seq in seqs:
            assert self.referee.sent("binance.spot", NAME, seq, delta(seq))

    def quoted(self, u: int, bid: bytes = b"1.00") -> None:
        assert not self.referee.sent("binance.spot", NAME, 1_000 + u, quote(u, bid))

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


def test_a_tier_that_is_not_the_top_of_the_book_fails() -> None:
    game = Game()
    game.sent(1)
    game.saw(1)
    game.book.apply(BookUpdate(bids=[(100, 6)]))
    game.saw(1, channel=Channel.BOOK, depth=10)
    report = game.report()
    assert (report.tiers_checked, report.tiers_failed) == (1, 1)
    assert not report.holds()
