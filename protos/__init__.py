"""What the bytes mean: messages, codecs, topics, fixed-point prices, and the order book. Pure: no I/O, no clock."""
