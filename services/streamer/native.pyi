from streamer.outbox import Segment

def send_all(
    sockets: list[int], firsts: bytearray, queues: list[list[Segment]], bytes_max: int
) -> tuple[int, int, list[tuple[int, bytes | None]]]: ...
