"""Ask the registries for known vulnerabilities of what we lock: ``make audit``.

A registry's mirror often has no advisories; then the tools report nothing, which is not good news. So this says what
was asked in vain, and ends with 2; with 1 when something is vulnerable.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NPM = ROOT / "tests" / "real_clients"
PIP_AUDIT = (
    *(sys.executable, "-m", "pip_audit", "--requirement", "requirements-dev.txt", "--disable-pip", "--require-hashes"),
    *("--format", "json", "--progress-spinner", "off"),
)
NPM_AUDIT = ("npm", "audit", "--package-lock-only", "--json")


class Verdict(NamedTuple):
    audited: int
    vulnerable: list[str]


def python_verdict(report: str) -> Verdict:
    """Of pip-audit's report; nothing is audited when it could not ask."""
    try:
        packages = json.loads(report)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return Verdict(0, [])
    asked = [package for package in packages if "skip_reason" not in package]
    found = [f"{one['name']} {one['version']}: {fault['id']}" for one in asked for fault in one["vulns"]]
    return Verdict(len(asked), found)


def npm_verdict(report: str) -> Verdict:
    """Of npm's report."""
    try:
        found = json.loads(report)
        audited = found["metadata"]["dependencies"]["total"]
    except (json.JSONDecodeError, KeyError):
        return Verdict(0, [])
    return Verdict(audited, [f"{name}: {fault['severity']}" for name, fault in found["vulnerabilities"].items()])


def _report(command: tuple[str, ...], directory: Path) -> str:
    try:
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=600).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def main() -> None:
    verdicts = {
        "Python": python_verdict(_report(PIP_AUDIT, ROOT)),
        "npm": npm_verdict(_report(NPM_AUDIT, NPM)),
    }
    for kind, (audited, vulnerable) in verdicts.items():
        if not audited:
            print(f"{kind}: NOT AUDITED, no advisory service can be reached from here")
        else:
            print(f"{kind}: {audited} packages audited, {len(vulnerable)} vulnerabilities")
        for one in vulnerable:
            print(f"  {one}")
    if any(vulnerable for _, vulnerable in verdicts.values()):
        sys.exit(1)
    if not all(audited for audited, _ in verdicts.values()):
        sys.exit(2)


if __name__ == "__main__":
    main()
