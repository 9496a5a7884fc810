"""All I/O: processes, Kafka, WebSocket and HTTP, settings, metrics, the command line, clients."""
