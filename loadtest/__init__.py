"""The other side of the wire: load generators that know only the protocol."""
