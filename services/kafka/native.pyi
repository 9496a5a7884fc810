from collections.abc import Mapping

from services.kafka.follower import Record

def open_batch(
    data: bytes,
    at: int,
    start: int,
    topic: str,
    partition: int,
    record: type[Record],
    no_headers: Mapping[str, bytes],
    /,
) -> tuple[list[Record] | None, int]: ...
