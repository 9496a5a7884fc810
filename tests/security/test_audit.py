"""An audit that could not ask anyone must not look like good news."""

import json

import pytest

from tests.support.audit import NPM, Verdict, npm_verdict, python_verdict

pytestmark = pytest.mark.security

UNKNOWN = {"name": "uvicorn", "skip_reason": "Dependency not found on PyPI and could not be audited: uvicorn (0.54.0)"}
SOUND = {"name": "httpx", "version": "0.28.1", "vulns": []}
FAULTY = {"name": "h11", "version": "0.15", "vulns": [{"id": "CVE-2025-43859", "fix_versions": ["0.16"]}]}


@pytest.mark.parametrize("report", ["", "no connection", "{}", json.dumps({"dependencies": [UNKNOWN] * 3})])
def test_no_answer_about_python_packages(report: str) -> None:
    assert python_verdict(report) == Verdict(0, [])


def test_vulnerable_python_packages_are_named() -> None:
    report = json.dumps({"dependencies": [UNKNOWN, SOUND, FAULTY], "fixes": []})
    assert python_verdict(report) == Verdict(2, ["h11 0.15: CVE-2025-43859"])


@pytest.mark.parametrize("report", ["", '{"message": "405 Method Not Allowed", "method": "POST"}'])
def test_no_answer_about_npm_packages(report: str) -> None:
    assert npm_verdict(report) == Verdict(0, [])


def test_vulnerable_npm_packages_are_named() -> None:
    found = {"vulnerabilities": {"ws": {"severity": "high"}}, "metadata": {"dependencies": {"total": 1}}}
    assert npm_verdict(json.dumps(found)) == Verdict(1, ["ws: high"])


def test_the_lock_file_of_npm_pins_by_hash_and_names_no_registry() -> None:
    packages = json.loads((NPM / "package-lock.json").read_text())["packages"]
    del packages[""]
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
