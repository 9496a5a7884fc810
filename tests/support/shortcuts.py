"""Protobuf with its shortcuts in C and what they work on, or without, whichever build this is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from protos import ladder, ring, shortcut
from tests.support.native import native

WITHOUT = dict.fromkeys(("pack_record", "pack_frame", "unpack_record", "advance"), shortcut.leave) | {
    "unpack_frame": shortcut.leave_frame,
    "restamp": shortcut.no_restamp,
}


@contextmanager
def shortcuts(kind: str) -> Iterator[None]:
    """While it lasts, all of protobuf is ``"python"``, or its shortcuts, new books and rings are ``"native"``."""
    functions: dict[str, Any] = WITHOUT
    new_ladder: Callable[[], ladder.Ladder] = ladder.PlainLadder
    new_ring: Callable[[int, int], ring.Ring] = ring.PlainRing
    if kind == "native":
        module = native("protos.native")
        functions = {name: getattr(module, name) for name in WITHOUT}
        new_ladder, new_ring = module.Ladder, module.Ring
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(shortcut, name, function)
        patch.setattr(ladder, "new_ladder", new_ladder)
        patch.setattr(ring, "new_ring", new_ring)
        yield
