"""The HTTP API under what schemathesis makes of its own description: each answer is documented, and none is 500."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.support.endpoint import Rig

pytestmark = pytest.mark.security


def api_of(**overrides: object) -> schemathesis.BaseSchema:
    server = Rig(**overrides).endpoint._server
    server._listener.close()  # the application is called, not connected to
    return schemathesis.openapi.from_asgi("/openapi.json", server._config.app)


WITH_AUTH = api_of(auth="token", auth_signing_keys="k1:" + "s" * 40)
WITHOUT_AUTH = api_of()
SOME = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@WITH_AUTH.parametrize()
@SOME
def test_with_authentication(case: schemathesis.Case) -> None:
    check(case)


@WITHOUT_AUTH.parametrize()
@SOME
def test_without_authentication(case: schemathesis.Case) -> None:
    check(case)


def check(case: schemathesis.Case) -> None:
    response = case.call()
    documented = case.operation.definition.raw["responses"]
    assert response.status_code != 500, response.text
    assert str(response.status_code) in documented or response.status_code in (404, 405, 413), response.text
    if response.status_code >= 400:
        problem = json.loads(response.content)
        assert problem["status"] == response.status_code
        assert problem["detail"]
