from streamer.limits import Limits


def test_the_bounds_agree_with_each_other() -> None:
    limits = Limits()
    assert limits.outbox_soft_bytes < limits.outbox_hard_bytes
    assert limits.outbox_hard_bytes + limits.frame_bytes_max <= 256 * 1024, "server memory of a client that never reads"
    assert limits.commands_burst >= limits.subscriptions_max, "a client may subscribe to all at once"
    assert limits.trades_joined <= limits.trades_kept
    assert limits.heartbeat_interval_ms < 60_000, "proxies drop idle connections after 60 s"
