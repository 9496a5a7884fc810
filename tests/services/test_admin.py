"""The admin port, and the clock."""

import asyncio
import time

import httpx
import pytest

from services.admin import Admin
from services.config import Settings
from services.errors import UserError
from services.metrics import Metrics
from services.streamer.clock import Clock
from tests.support.endpoint import running


async def test_livez_readyz_and_metrics() -> None:
    reason = "catching up"
    metrics = Metrics()
    admin = Admin(Settings(admin_port=0), metrics, lambda: reason)
    await admin.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin.port}") as http:
        assert (await http.get("/livez")).text == "alive\n"
        unready = await http.get("/readyz")
        assert (unready.status_code, unready.text) == (503, "catching up\n")
        assert "depthcast_ready 0.0" in (await http.get("/metrics")).text
        reason = ""
        assert (await http.get("/readyz")).status_code == 200
        exposition = await http.get("/metrics")
        assert exposition.headers["content-type"].startswith("text/plain; version=")
        assert "depthcast_ready 1.0" in exposition.text
        assert metrics.registry.get_sample_value("depthcast_tasks") == len(asyncio.all_tasks())
        assert (await http.get("/")).status_code == 404
    with pytest.raises(UserError, match=f"^port {admin.port} is taken; .*DEPTHCAST_ADMIN_PORT"):
        Admin(Settings(admin_port=admin.port), metrics, lambda: "")
    await admin.stop()


async def test_an_address_that_is_not_ours_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"^cannot listen on 192\.0\.2\.1:9: Cannot assign .*; set DEPTHCAST_ADMIN_PORT$"
    ):
        Admin(Settings(admin_host="192.0.2.1", admin_port=9), Metrics(), lambda: "")


async def test_a_blocked_event_loop_shows_as_lag() -> None:
    metrics = Metrics()
    admin = Admin(Settings(admin_port=0), metrics, lambda: "")
    await admin.start()
    await asyncio.sleep(0.15)
    time.sleep(0.4)  # noqa: ASYNC251 - blocking is what is measured
    await asyncio.sleep(0.15)
    await admin.stop()
    slow = metrics.registry.get_sample_value("depthcast_event_loop_lag_seconds_bucket", {"le": "0.25"})
    count = metrics.registry.get_sample_value("depthcast_event_loop_lag_seconds_count")
    assert count is not None
    assert slow == count - 1


async def test_a_draining_endpoint_is_not_ready() -> None:
    async with running() as rig:
        assert rig.endpoint.clients.why_not_ready() == ""
        await rig.endpoint.drain(0.1)
        assert rig.endpoint.clients.why_not_ready() == "this server is shutting down"


def test_the_clock_slews_to_wall_time_and_never_goes_back() -> None:
    wall, monotonic = 1_000_000, 0
    clock = Clock(lambda: wall, lambda: monotonic)
    assert clock.now_ns() == 1_000_000
    wall -= 300
    clock.follow()
    assert clock.now_ns() == 1_000_000, "no time has passed in which it could slow down"
    before = clock.now_ns()
    for _ in range(100):
        wall, monotonic = wall + 100, monotonic + 100
        clock.follow()
        assert before < clock.now_ns() <= before + 110
        before = clock.now_ns()
    assert clock.now_ns() == wall, "300 late is made up in 30 steps of 10"
