"""Venue messages to verified order books. Pure: a function of the ticks log, without I/O, clock or randomness."""
