"""Where a result comes from: code, versions, data, and every attempt it took."""

from __future__ import annotations

import hashlib
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from data_prep.files import write_json
from vae.goodput import with_work
from vae.metrics import read_metrics
from vae.study import PROVENANCE_FILE, read_json, read_launches

REPOSITORY = Path(__file__).resolve().parent.parent
# Beside a copy of the code that a launch has made for its jobs: what `code` said at that moment.
SNAPSHOT_FILE = "snapshot.json"
PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "submitit",
    "pytorch-ignite",
    "h5py",
    "numpy",
    "pillow",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def code() -> dict[str, str]:
    """The commit this code is at, and the changes on top of it as a diff with its SHA-256."""
    if launched := read_json(REPOSITORY / SNAPSHOT_FILE):
        return launched
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    if commit is None:
        return {"commit": "unknown: not a git checkout"}
    if not diff:
        return {"commit": commit.strip()}
    return {
        "commit": commit.strip(),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest(),
        "diff": diff,
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def record_attempt(run_dir: Path, data_fingerprint: str, attempt: dict[str, Any]) -> int:
    """Add this attempt to provenance.json; returns how many came before it (the restarts).

    What the attempt before it did is noted there first: its lines after the step that this one begins at
    are about to be dropped from metrics.jsonl.
    """
    known = read_json(run_dir / PROVENANCE_FILE) or {}
    earlier: list[dict[str, Any]] = known.get("attempts", [])
    if earlier:
        earlier[-1] = with_work(earlier[-1], read_metrics(run_dir))
    started: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        **attempt,
    }
    record: dict[str, Any] = {
        **code(),
        "versions": versions(),
        "data_fingerprint": data_fingerprint,
        "command": command_of(run_dir, attempt),
        "attempts": [*earlier, started],
    }
    write_json(run_dir / PROVENANCE_FILE, record)
    return len(earlier)


def command_of(run_dir: Path, attempt: dict[str, Any]) -> list[str]:
    """The words somebody typed: the launch that a job comes from, else this process's own command."""
    launches = read_launches(run_dir.parent, run_dir.name) if "job" in attempt else []
    return launches[-1]["command"] if launches else sys.argv
