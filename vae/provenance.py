"""provenance.json: where a result comes from: code, versions, data, and every attempt it took."""

import hashlib
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from data_prep.json_records import Record, read_record, write_record
from vae.metrics import EpochLine, MetricsLine, SaveLine, StartLine, read_metrics
from vae.run_dir import PROVENANCE_FILE
from vae.study import read_launches

REPOSITORY = Path(__file__).resolve().parent.parent
# Beside a copy of the code that a launch has made for its jobs: what `code_version` gave at that moment.
SNAPSHOT_FILE = "snapshot.json"
PACKAGES = ("torch", "torchvision", "accelerate", "submitit", "pytorch-ignite", "h5py", "numpy", "pillow")


class CodeVersion(Record, frozen=True, omit_defaults=True):
    """Which code ran."""

    commit: str = ""
    diff_sha256: str = ""
    diff: str = ""
    """The changes on top of the commit."""
    snapshot: str = ""
    """Name of the copy in the study's folder that the jobs run."""


class Work(Record, frozen=True, omit_defaults=True):
    """What an attempt did, in seconds from its start line in metrics.jsonl to its last one."""

    reached_step: int
    last_s: float
    """Unix time of the last line."""
    train_s: float
    save_s: float
    saves: int
    val_s: float
    cores: float | None = None
    """Kept busy by rank 0, on average; the memory below is its peak in GiB, all as of its last save."""
    host_gb: float | None = None
    gpu_gb: float | None = None


class Attempt(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One start of a training: where it ran, and when (Unix seconds); empty and None are unknown."""

    started: str = ""
    """Local time, for people."""
    host: str = ""
    started_s: float | None = None
    cluster: str = ""
    """Backend that started it; empty if somebody trained it by hand."""
    job: str = ""
    restart: int = 0
    nodes: str = ""
    cpus: int | None = None
    gpus: int | None = None
    visible_gpus: str = ""
    submitted_s: float | None = None
    eligible_s: float | None = None
    allocated_s: float | None = None
    ends_s: float | None = None
    world_size: int = 1
    device: str = ""
    precision: str = ""
    """What it computed in, as accelerate calls it: no (fp32 or fp64), bf16 or fp16."""
    from_step: int | None = None
    work: Work | None = None
    """What it did; written down when the next attempt begins."""


class Provenance(CodeVersion, frozen=True, kw_only=True, omit_defaults=True):
    """Everything but the settings that a result depends on."""

    IF_DAMAGED = "remove it and launch again: it begins anew, without the attempts so far"

    versions: dict[str, str] = msgspec.field(default_factory=dict)
    data_fingerprint: str = ""
    command: tuple[str, ...] = ()
    """The words that somebody typed."""
    attempts: tuple[Attempt, ...] = ()


def read_provenance(run_dir: Path) -> Provenance:
    """provenance.json, or an empty record before training begins; DamagedFile if it is neither."""
    return read_record(run_dir / PROVENANCE_FILE, Provenance) or Provenance()


def read_attempts(run_dir: Path) -> tuple[Attempt, ...]:
    """The attempts at training a run, oldest first."""
    return read_provenance(run_dir).attempts


def record_attempt(run_dir: Path, data_fingerprint: str, attempt: Attempt) -> int:
    """Add this attempt to provenance.json; returns how many came before it (the restarts)."""
    earlier = list(read_attempts(run_dir))
    if earlier:
        # its lines after the step that this one begins at are about to be dropped from metrics.jsonl
        earlier[-1] = with_work(earlier[-1], read_metrics(run_dir))
    provenance = Provenance(
        **msgspec.structs.asdict(code_version()),
        versions=versions(),
        data_fingerprint=data_fingerprint,
        command=command_of(run_dir, attempt),
        attempts=(*earlier, attempt),
    )
    write_record(run_dir / PROVENANCE_FILE, provenance)
    return len(earlier)


def this_attempt(**facts: str | int | float | None) -> Attempt:
    """An attempt that begins now, on this machine."""
    started, started_s = time.strftime("%Y-%m-%dT%H:%M:%S%z"), round(time.time(), 3)
    return Attempt(started=started, host=socket.gethostname(), started_s=started_s, **facts)  # type: ignore[arg-type]


def with_work(attempt: Attempt, lines: Sequence[MetricsLine]) -> Attempt:
    """The newest attempt and what it did, if the end of metrics.jsonl is its own."""
    if attempt.work or attempt.started_s is None or not lines or lines[-1].time < attempt.started_s:
        return attempt
    return msgspec.structs.replace(attempt, work=work_of(lines))


def work_of(lines: Sequence[MetricsLine]) -> Work | None:
    """What the newest attempt did, from the last lines of metrics.jsonl; None if they do not say."""
    marks = [number for number, line in enumerate(lines) if isinstance(line, (StartLine, SaveLine))]
    if not marks:
        return None
    mark, after, last = lines[marks[-1]], lines[marks[-1] + 1 :], lines[-1]
    sums = mark if isinstance(mark, SaveLine) else SaveLine(step=mark.step, seconds=0.0, train_s=0.0)
    if sums.train_s is None:
        return None
    val_s = sum(line.val_seconds or 0.0 for line in after if isinstance(line, EpochLine))
    train_s = round(sums.train_s + last.time - mark.time - val_s, 3)
    as_saved = {name: getattr(sums, name) for name in ("save_s", "saves", "cores", "host_gb", "gpu_gb")}
    return Work(last.step, last.time, train_s, val_s=round(sums.val_s + val_s, 3), **as_saved)


def command_of(run_dir: Path, attempt: Attempt) -> tuple[str, ...]:
    """The words somebody typed: the launch that a job comes from, else this process's own command."""
    launches = read_launches(run_dir.parent, run_dir.name) if attempt.job else []
    return tuple(launches[-1].command if launches else sys.argv)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers


def code_version() -> CodeVersion:
    """The commit this code is at, and the changes on top of it as a diff with its SHA-256."""
    if snapshot := read_record(REPOSITORY / SNAPSHOT_FILE, CodeVersion):
        return snapshot
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    if commit is None:
        return CodeVersion("unknown: not a git checkout")
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else ""
    return CodeVersion(commit.strip(), digest, diff or "")


def _git(*words: str) -> str | None:
    command = ["git", *words]
    try:
        return subprocess.check_output(
            command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
