"""Every bound of the streamer core in one place, each with its reason."""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Limits:
    """Bytes, counts, and durations in milliseconds."""

    # A second of a busy depth-10 dashboard. More than this waiting means the socket is full, and newest state is worth
    # more to the client than history.
    outbox_soft_bytes: int = 64 * 1024

    # Bytes alone do not tell: at 25 KB/s the soft mark is 2.5 s of the past. A queue that nobody took from for so
    # long collapses too, so a slow client's book is newest-state within a second (tests/slow/test_slow_reader.py).
    outbox_soft_ms: int = 250

    # `raw` and `trades` may not be merged, so they wait up to this before 4008. With the objects around small updates
    # and the kernel's buffers a client that never reads costs at most 256 KiB (tests/slow/test_dead_clients.py).
    outbox_hard_bytes: int = 112 * 1024

    # Longer than a garbage collection or a Wi-Fi handover, shorter than anyone would look at a frozen price.
    outbox_stall_ms: int = 10_000

    # What a client must take in that time, if not all that was written, to make progress: 6 KB/s. A large snapshot may
    # take minutes, but nobody makes us hold one for a byte now and then.
    outbox_progress_bytes: int = 64 * 1024

    # What one take() puts in a frame: large enough that a send's fixed 5 us vanish, small enough for TLS and for the
    # default message limits of WebSocket clients. One catch-up message may exceed it.
    frame_bytes_max: int = 64 * 1024

    # Every stream of a 200-symbol screen, with room: each costs about 300 B on a connection.
    subscriptions_max: int = 1_000

    # The longest command is a JSON subscribe of about 250 B; tokens need up to 4 KiB.
    command_bytes_max: int = 4_096

    # A client may subscribe to all it is allowed at once (burst), then at a pace no person exceeds.
    commands_burst: int = 1_200
    commands_per_s: int = 50

    # Pings and pongs of a client per heartbeat interval. Browsers send none, libraries one in 10 to 20 s.
    controls_max: int = 120

    # Frames of one message. A command has 4 KiB at most; nobody needs to send it byte by byte.
    fragments_max: int = 64

    # Long enough that nobody notices, short enough that a pod's share of the clients becomes fair again, and that no
    # client can forget how to reconnect. Each connection ends up to a tenth earlier, so that they do not come together.
    connection_age_max_ms: int = 86_400_000

    # Request line and headers: a token of 8 KiB and a browser's cookies fit.
    head_bytes_max: int = 16 * 1024
    headers_max: int = 100

    # What an HTTP request may bring besides its head: an identity provider's token.
    body_bytes_max: int = 16 * 1024

    # For a whole request to arrive, and for a response to be taken: a peer that does either byte by byte holds a socket
    # for this long at most.
    request_timeout_ms: int = 10_000

    # The tenth fault closes the connection: a looping client would otherwise cost a reply each time. One is forgiven
    # per minute, so that typing errors on a connection that lives for weeks do not add up.
    bad_commands_max: int = 10
    bad_command_forgiven_ms: int = 60_000

    # How far back since() can prove a merged delta, per ring: 48 KiB of positions (32 in C) and 64 KiB of prices
    # at most. A longer delta would be larger than the snapshot it saves.
    since_updates_max: int = 2_048
    since_prices_max: int = 8_192

    # Answers of since() that a storm of joiners shares, per stream and codec. A snapshot can have 100 KB, and a client
    # may ask for any position.
    catch_ups_cached: int = 8

    # Per instrument, for HTTP and for resuming `trades`; and how many of them a joiner gets.
    trades_kept: int = 256
    trades_joined: int = 50

    # Below the 60 s after which proxies drop idle connections. Two pings without any sign of life close with 4009.
    heartbeat_interval_ms: int = 15_000
    pongs_missed_max: int = 2

    # A wrong client book is found within this time; 12 bytes per stream each time.
    digest_interval_ms: int = 5_000

    # Kafka silent or read this late: what we hold is no longer "now".
    stale_after_ms: int = 10_000

    # Without a token in the handshake: time for a browser to fetch one. Nobody vouches for such a socket.
    auth_wait_ms: int = 10_000

    # AUTH_EXPIRING comes this long before the end: time to fetch a token and to try again when that fails.
    auth_warning_ms: int = 30_000
