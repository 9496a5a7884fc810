"""Which build this is: the pure packages interpreted, or compiled by mypyc (``DEPTHCAST_COMPILE=1``)."""

from importlib.metadata import version

from streamer import hub

COMPILED = not hub.__file__.endswith(".py")


def describe() -> str:
    """Version and build, as in ``depthcast 0.1.0, compiled``."""
    return f"depthcast {version('depthcast')}, {'compiled' if COMPILED else 'pure Python'}"
