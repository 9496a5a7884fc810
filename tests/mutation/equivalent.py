"""Mutants that no test can tell from the module, and why."""

OPERATORS = {
    "core/ReplaceBinaryOperator_BitOr_.*": "stands in annotations only",
    "core/ReplaceComparisonOperator_(Is_Eq|IsNot_NotEq)": "a member of an enum equals only itself",
}
"""Not tried at all."""

_BOUND = "the tests use the bound by its name, whatever it is"
_LAST = "in every other state there is no last sequence, and without one nothing is old"
_SPANS = (
    "spans = None not in (event.first, event.last, last)"
    " and event.first <= last {} event.last  # type: ignore[operator]"
)
_ENDED = "a delta that ends where the book is is old, and nobody asks whether it joins"
_JOINED = "a snapshot sets it before it is read"
_NO_STREAM = "what belongs to no stream has no position, and nobody reads it"
_NO_TIME = "no time is so early"
_ONE_TALLY = "a notice has no tally of its own, and nothing else a hole"
_NO_MORE = "nobody has more streams than that"
_SHORTCUT = "only saves a pass in which nothing is dropped"

_REASONS: dict[str, dict[str, str]] = {
    "ingest/sequence.py": {
        "BUFFERED_LEVELS_MAX = 14999": _BOUND,
        "BUFFERED_LEVELS_MAX = 15001": _BOUND,
        "BUFFERED_DELTAS_MAX = 1999": _BOUND,
        "BUFFERED_DELTAS_MAX = 2001": _BOUND,
        **dict.fromkeys((_SPANS.format(operator) for operator in ("<", "!=", "is not")), _ENDED),
        "@dataclass(slots=False)": "costs memory only",
        "joined: bool = True  # a delta has continued the snapshot": _JOINED,
        "self.last, self.joined = None, True": _JOINED,
        "if self.state >= BookState.SYNCED and _not_above(event, self.last):": _LAST,
        "if self.state <= BookState.SYNCED and _not_above(event, self.last):": _LAST,
        "if self.buffered_levels + _size(event) > BUFFERED_LEVELS_MAX or len(self.buffer) == BUFFERED_DELTAS_MAX:": (
            "the buffer grows by one, and is emptied when it is full"
        ),
    },
    "streamer/outbox.py": {
        "if len(self.cache) == self.cached_max:": "the cache grows by one, and is emptied when it is full",
        "if len(self.cache) is self.cached_max:": "the cache grows by one, and is emptied when it is full",
        "self.socket = ~1  # the shell's: where it may write at once; -1: the client must be asked": "below 0 as well",
        "self.queue.append(Segment(chunk, None, 1, 0, 0, 0))": _NO_STREAM,
        "self.queue.append(Segment(chunk, None, -1, 0, 0, 0))": _NO_STREAM,
        "self.queue.append(Segment(chunk, None, 0, 1, 0, 0))": _NO_STREAM,
        "self.queue.append(Segment(chunk, None, 0, -1, 0, 0))": _NO_STREAM,
        "self.queue.append(Segment(chunk, None, 0, 0, 1, 0))": _NO_STREAM,
        "self.queue.append(Segment(chunk, None, 0, 0, -1, 0))": _NO_STREAM,
        "continue": "the size only grows: after the first that is too much, all are",
        "if len(chunks) >= len(queue):": "nobody takes more than there is",
        "if len(chunks) is len(queue):": "to forget the first so many, of all, is to forget all",
        "if len(chunks) > len(queue):": "to forget the first so many, of all, is to forget all",
        "if self.stalled_ns <= 0:": _NO_TIME,
        "if self.skips and self.bytes >= limits.outbox_soft_bytes:": _SHORTCUT,
        "if self.skips or self.bytes > limits.outbox_soft_bytes:": _SHORTCUT,
        "if self.skips and self.bytes is not limits.outbox_soft_bytes:": _SHORTCUT,
        "if self.skips and self.bytes != limits.outbox_soft_bytes:": _SHORTCUT,
        "if notice is None or notice.epoch < segment.epoch:": "epochs ascend in a queue",
        "def join(self, lane: Lane, epoch: int, seq: int, /, skip: bool) -> None:": "the star is taken for a product",
        "skipped += sum([segment.tally | self.holes.pop(segment, 0) for segment in mine])": _ONE_TALLY,
        "skipped += sum([segment.tally ^ self.holes.pop(segment, 0) for segment in mine])": _ONE_TALLY,
        "QUEUED = -1": "nobody asks for it but tests, by its name",
        "QUEUED = 1": "nobody asks for it but tests, by its name",
        "CONFLATED = 0": "nobody asks for it but tests, by its name",
        "OVERFLOW = 3": "asked for by its name",
        "self.socket = - 2  # the shell's: where it may write at once; -1: the client must be asked": "below 0 as well",
        "self.behind[lane] = (epoch, seq, ~1)": "below 0 as well",
        "self.behind[lane] = (epoch, seq, - 2)": "below 0 as well",
        "self.taking_ns = 1  # the shell's: when the client last made progress with what was taken": _NO_TIME,
        "self.taking_ns = -1  # the shell's: when the client last made progress with what was taken": _NO_TIME,
    },
    "streamer/session.py": {
        "return Bucket(max(burst, 1), _S / (per_s or limits.commands_per_s))": "differs by less than a nanosecond",
        'reason = "too many commands" if code >= CloseCode.TOO_MANY else "too many bad commands"': (
            "the other is smaller"
        ),
        "room = max( -1, self.limits.subscriptions_max - len(self.streams))": _NO_MORE,
        "self._warning_ns = access.expires_ns - ahead_ns if access.expires_ns != NEVER_NS else NEVER_NS": (
            "nothing is later than never"
        ),
        "if len(session.streams) == session.limits.subscriptions_max:": _NO_MORE,
    },
}


def reason_of(module: str, mutated: str) -> str:
    """Why the line makes no difference; "" if it does."""
    return _REASONS.get(module, {}).get(mutated, "")
