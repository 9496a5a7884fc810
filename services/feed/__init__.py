"""Feeds: what puts venue messages on the ticks topic."""
