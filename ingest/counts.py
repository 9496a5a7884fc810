"""What happened in a pipeline, for metrics. Has no part in its outputs."""

from dataclasses import dataclass, field, fields, replace

from protos.messages import Reason


@dataclass(slots=True)
class Counts:
    """Since the last `take`."""

    gaps: dict[Reason, int] = field(default_factory=dict)
    checksums_passed: int = 0
    checksums_failed: int = 0
    quotes_passed: int = 0  # venue quotes at the very sequence of the book
    quotes_failed: int = 0
    epochs: int = 0
    crossed: int = 0
    updates: int = 0

    def take(self) -> "Counts":
        """A copy; this one starts again from nothing."""
        taken, fresh = replace(self), Counts()
        for counter in fields(self):
            setattr(self, counter.name, getattr(fresh, counter.name))
        return taken
