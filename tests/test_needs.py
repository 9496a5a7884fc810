"""What becomes of a test whose tools are missing."""

import pytest

from tests.support import kafka_server, redis_server
from tests.support.needs import need


def test_off_ci_it_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="get it there"):
        need("it is missing: get it there")


def test_in_ci_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="get it there"):
        need("it is missing: get it there")


@pytest.mark.parametrize("ci", ["", "true"])
def test_nothing_missing_is_nothing(ci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    need(None)
    need("")


@pytest.mark.parametrize("missing", [kafka_server.missing, redis_server.missing], ids=["Kafka", "Redis"])
def test_on_a_bare_machine_the_servers_say_how_to_get_them(missing: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert callable(missing)
    reason = missing()
    assert reason is not None
    assert "apt-get install" in reason
