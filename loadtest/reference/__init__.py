"""Servers to compare with, all fed as the floor in ``floor.c`` is: over one TCP connection, see `feed`."""
