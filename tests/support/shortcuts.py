"""Protobuf with its shortcuts in C, or without, whichever build this is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from protos import shortcut
from tests.support.native import native

WITHOUT = dict.fromkeys(("pack_record", "pack_frame", "unpack_record", "advance"), shortcut.leave) | {
    "unpack_frame": shortcut.leave_frame,
    "restamp": shortcut.no_restamp,
}


@contextmanager
def shortcuts(kind: str) -> Iterator[None]:
    """While it lasts, all of protobuf is ``"python"``, or its shortcuts are ``"native"``."""
    functions: dict[str, Any] = WITHOUT
    if kind == "native":
        module = native("protos.native")
        functions = {name: getattr(module, name) for name in WITHOUT}
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(shortcut, name, function)
        yield
