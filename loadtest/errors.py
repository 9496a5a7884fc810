"""What a user can mend."""


class LoadTestError(Exception):
    """One line that says what to do."""
