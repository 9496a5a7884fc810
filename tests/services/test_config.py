import pytest

from services.config import NOT_SETTINGS, Settings, effective, environment_of, load_settings, unknown_variables
from services.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in effective(Settings()):
        monkeypatch.delenv(name, raising=False)
    load_settings.cache_clear()
    return monkeypatch


def test_environment_goes_over_defaults_and_arguments_over_both(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_HTTP_PORT", "9000")
    environment.setenv("DEPTHCAST_PARTITIONS", "3")
    settings = load_settings(partitions=5)
    assert (settings.http_port, settings.partitions, settings.admin_port) == (9000, 5, 8081)


def test_empty_variable_is_the_default(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_KAFKA_CA_FILE", "")
    assert load_settings().kafka_ca_file is None


def test_settings_are_read_once_and_immutable() -> None:
    settings = load_settings()
    assert load_settings() is settings
    with pytest.raises(ValueError, match="frozen"):
        settings.http_port = 1  # type: ignore[misc]


def test_all_faults_are_reported_at_once(environment: pytest.MonkeyPatch) -> None:
    wrong = {
        "KAFKA_BOOTSTRAP": "kafka",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_CA_FILE": "/does/not/exist",
        "TOPIC_PREFIX": "a b",
        "HTTP_PORT": "http",
        "FLUSH_DUTY_MAX": "2",
        "LOG_LEVEL": "loud",
        "OUTBOX_HARD_BYTES": "10",
        "CHECKPOINT_INTERVAL_MS": "1000000",
    }
    for name, value in wrong.items():
        environment.setenv(f"DEPTHCAST_{name}", value)
    with pytest.raises(UserError) as raised:
        load_settings()
    first, *lines = str(raised.value).splitlines()
    named = {line.strip().split(":")[0].removeprefix("DEPTHCAST_") for line in lines}
    assert first == "wrong settings:"
    assert named == (set(wrong) - {"KAFKA_SECURITY_PROTOCOL"}) | {"KAFKA_SASL_PASSWORD"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CHECKPOINT_INTERVAL_MS", "900001", "at most a quarter of DEPTHCAST_MARKET_RETENTION_MS (3600000)"),
        ("ADMIN_PORT", "8080", "must differ from DEPTHCAST_HTTP_PORT"),
        ("ADMIN_PORT", "8079", "must differ from DEPTHCAST_HTTP_PORT (8080), for each of DEPTHCAST_WORKERS"),
        ("ADMIN_PORT", "65535", "must leave a port for each of DEPTHCAST_WORKERS: 65536 is above 65535"),
        ("OUTBOX_HARD_BYTES", "65536", "must be more than DEPTHCAST_OUTBOX_SOFT_BYTES (65536)"),
        ("KAFKA_BOOTSTRAP", "a:1,b", "must be HOST:PORT, several separated by commas"),
        ("LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_fault_says_what_to_do(environment: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    environment.setenv("DEPTHCAST_WORKERS", "2")
    environment.setenv(f"DEPTHCAST_{name}", value)
    with pytest.raises(UserError) as raised:
        load_settings()
    assert f"DEPTHCAST_{name}: " in str(raised.value)
    assert said in str(raised.value)


def test_market_retention_of_exactly_four_checkpoints_is_enough(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_CHECKPOINT_INTERVAL_MS", "900000")
    assert load_settings().market_retention_ms == 4 * load_settings().checkpoint_interval_ms


def test_secret_is_masked_wherever_settings_are_printed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_KAFKA_SASL_PASSWORD", "hunter2")
    settings = load_settings()
    assert settings.kafka_sasl_password.get_secret_value() == "hunter2"
    assert effective(settings)["DEPTHCAST_KAFKA_SASL_PASSWORD"] == "**********"
    assert "hunter2" not in repr(settings) + str(effective(settings))


def test_secret_is_not_in_a_fault(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_KAFKA_SASL_PASSWORD", "hunter2")
    environment.setenv("DEPTHCAST_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(UserError) as raised:
        load_settings()
    assert "hunter2" not in str(raised.value)


def test_the_environment_of_a_child_process_gives_it_the_same_settings(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_KAFKA_SASL_PASSWORD", "hunter2")
    settings = load_settings(http_port=9000, drain_ms=1)
    for name, value in environment_of(settings).items():
        environment.setenv(name, value)
    load_settings.cache_clear()
    assert load_settings() == settings


def test_unknown_variables_are_found(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPTHCAST_HTPP_PORT", "1")
    environment.setenv("DEPTHCAST_CAPTURES", "/data")
    assert unknown_variables() == ["DEPTHCAST_HTPP_PORT"]
    assert "DEPTHCAST_CAPTURES" in NOT_SETTINGS


def test_every_setting_says_its_unit_and_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        for suffix, unit in (("_ms", "Milliseconds"), ("_bytes", "Bytes"), ("_bytes_max", "Bytes")):
            assert not name.endswith(suffix) or field.description.startswith(unit), name
