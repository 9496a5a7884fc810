"""The client: a core without I/O that tells right books from wrong ones, and its asyncio driver."""
