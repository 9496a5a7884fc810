"""No attack may make an exception escape."""

from tests.support.quiet import no_traceback

__all__ = ["no_traceback"]
