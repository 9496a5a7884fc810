"""The streamer process: Kafka in, WebSocket and HTTP clients out. Start reading at `app.py`."""
