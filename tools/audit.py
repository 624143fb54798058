"""Ask an advisory service for known vulnerabilities of every version in ``constraints.txt``.

Run from the project's root::

    python tools/audit.py
    python tools/audit.py --if-reachable

pip-audit calls a package that its service does not know a success. So each service first has to
know the advisories of an old release that has some. The exit status is 0 where every version was
asked for and has no advisory, 1 where a version has one, and 2 where the versions were not audited.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
SERVICES = ("pypi", "osv")
# A release with published advisories, which a service that answers must know.
KNOWN = "jinja2==2.4.1"
VULNERABLE, NOT_AUDITED = 1, 2

IfReachable = Annotated[
    bool, typer.Option(help="Exit with 0 if no service answers, and say that nothing was audited.")
]


@dataclass(frozen=True)
class Audit:
    """Answers of a service.

    Arguments:
        versions: the number of versions that the service knows.
        skipped: the versions that it does not know, with its reason.
        advisories: a line for each advisory.
    """

    versions: int
    skipped: tuple[str, ...]
    advisories: tuple[str, ...]


def ask(requirements: Path, service: str) -> Audit | None:
    """Ask a service for the versions in a file; None if it does not answer."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements)]
    command += ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command += ["--vulnerability-service", service]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return read(json.loads(done.stdout))
    except json.JSONDecodeError:
        return None


def read(answer: dict[str, Any]) -> Audit:
    """Read the JSON of pip-audit."""
    packages = answer["dependencies"]
    known = [p for p in packages if "skip_reason" not in p]
    advisories = [
        f"{p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'none'}"
        for p in known
        for v in p["vulns"]
    ]
    skipped = [p["skip_reason"] for p in packages if "skip_reason" in p]
    return Audit(len(known), tuple(skipped), tuple(advisories))


def service_that_answers() -> str | None:
    """Return the first service that knows the advisories of an old release."""
    with TemporaryDirectory() as folder:
        old = Path(folder) / "old.txt"
        old.write_text(f"{KNOWN}\n")
        for service in SERVICES:
            found = ask(old, service)
            if found is not None and found.advisories:
                return service
    return None


def main(if_reachable: IfReachable = False) -> None:
    """Audit the versions of ``constraints.txt``."""
    service = service_that_answers()
    found = None if service is None else ask(CONSTRAINTS, service)
    if found is None:
        print(
            f"NOT AUDITED: none of {', '.join(SERVICES)} told the known advisories of {KNOWN}. The "
            "package index may serve no advisories, or the network reaches no service. Run "
            "make audit where pypi.org or api.osv.dev answers.",
            file=sys.stderr,
        )
        raise typer.Exit(0 if if_reachable else NOT_AUDITED)
    for line in (*found.skipped, *found.advisories):
        print(line, file=sys.stderr)
    print(
        f"{service}: {found.versions} versions audited, {len(found.skipped)} not known there, "
        f"{len(found.advisories)} advisories."
    )
    if found.advisories:
        raise typer.Exit(VULNERABLE)
    if found.skipped:
        raise typer.Exit(NOT_AUDITED)


if __name__ == "__main__":
    typer.run(main)
