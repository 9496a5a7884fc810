"""Books to what each client gets: streams, tiers, hub, outbox, session. Pure: no I/O, no clock."""
