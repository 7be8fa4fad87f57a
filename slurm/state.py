"""What is going on: our own files, squeue and sacct, merged. Any of the two may be missing, late or wrong.

Our files say what is finished; squeue says what is queued or running; sacct says how the rest ended.
No answer is "unknown", never "failed".
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.errors import ClusterError, SettingsError
from data_prep.files import only_holder, write_json
from slurm.place import clean_environment
from slurm.request import JobRequest, RunFacts, StudyFacts
from vae.goodput import goodput
from vae.study import (
    DONE_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    SCORES_FILE,
    Study,
    is_scored,
    is_study,
    is_trained,
    read_json,
    read_study,
    slowest_stop_s,
)

log = logging.getLogger(__name__)

JOBS_FILE = "jobs.json"
JOBS_LOCK_FILE = ".jobs.lock"
JOBS_LOCK_WAIT_S = 10.0
LOCK_FILE = ".launch.lock"
REPORT_FILE = "report.html"
ANSWER_LIMIT_S = 30
# What a job cannot start without, in SLURM's `aftercorr:8_*(unfulfilled),afterok:9(failed)`.
NEEDS = re.compile(r"(afterok|aftercorr):(\d+)")
# metrics.jsonl of a long run is read from its end: so much, and more if that holds no mark. A thousand runs
# are told of within two seconds, so its lines are told apart before JSON is read.
TAIL_BYTES = 16 * 1024
MARK = re.compile(rb'^\{"kind": "(start|save)"', re.MULTILINE)
STEP = b'{"kind": "step"'


# --- which jobs were submitted ---------------------------------------------------------------


@dataclass(frozen=True)
class JobRecord:
    """One submitted job or array, as jobs.json keeps it."""

    id: str
    kind: str
    cluster: str
    """slurm or local."""
    is_array: bool
    indices: tuple[int, ...]
    """Array indices, which are positions in study.yaml."""
    host: str
    """Machine it was submitted from."""
    offset: int = 0
    """Position of the element with array index 0."""
    end: str = ""
    """How a local job was ended on purpose: cancelled or interrupted. Of its own jobs SLURM knows that."""
    name: str = ""
    """Job name; SLURM may give the same id again to something else."""

    @classmethod
    def of(cls, request: JobRequest, job: str, cluster: str) -> JobRecord:
        """The record of a request that has just become job `job`."""
        is_array = request.is_array and cluster == "slurm"
        host = socket.gethostname()
        indices = tuple(request.tasks)
        return cls(job, request.kind, cluster, is_array, indices, host, request.offset, name=request.name)

    def element(self, index: int) -> str:
        """Id of one element, as squeue and sacct write it."""
        return f"{self.id}_{index - self.offset}" if self.is_array else self.id


def read_records(folder: Path) -> list[JobRecord]:
    """The jobs submitted for a study or data folder, oldest first.

    Raises:
        ClusterError: the file that tells is damaged, so what runs might be started twice.
    """
    path = folder / JOBS_FILE
    known = (read_json(path) or {}).get("jobs")
    if known is None and path.exists():
        raise ClusterError(
            f"{path} is damaged, so nobody knows which jobs are at work",
            "see that squeue shows none of its jobs, then remove the file: it is written anew",
        )
    return [JobRecord(**{**job, "indices": tuple(job["indices"])}) for job in known or ()]


def read_jobs(study_dir: Path, study: Study) -> list[JobRecord]:
    """The jobs submitted for a study, those submitted by hand included, oldest first."""
    known = read_records(study_dir)
    ids = {record.id for record in known}
    by_hand = []
    for index, name in enumerate(study.runs):
        attempts = (read_json(study_dir / name / PROVENANCE_FILE) or {}).get("attempts", [])
        last = attempts[-1] if attempts else {}
        if last.get("cluster") == "slurm" and last["job"].split("_")[0] not in ids:
            by_hand.append(JobRecord(last["job"], "train", "slurm", False, (index,), last.get("host", "")))
    return [*by_hand, *known]


def add_record(folder: Path, record: JobRecord) -> None:
    """Remember a submitted job."""
    with _changing(folder) as records:
        records.append(record)


def note_end(folder: Path, job: str, how: str) -> None:
    """Remember that local job `job` is ended on purpose; what was noted first stands."""
    with _changing(folder) as records:
        records[:] = [replace(known, end=known.end or how) if known.id == job else known for known in records]


@contextmanager
def _changing(folder: Path) -> Iterator[list[JobRecord]]:
    """The records of a folder, written back after the block; a launcher and `cancel` may meet here."""
    with only_holder(folder / JOBS_LOCK_FILE, JOBS_LOCK_WAIT_S) as is_ours:
        if not is_ours:
            raise ClusterError(f"another process keeps {folder / JOBS_FILE} locked", "end it, and try again")
        records = read_records(folder)
        yield records
        write_json(folder / JOBS_FILE, {"jobs": [asdict(record) for record in records]})


@contextmanager
def only_launcher(study_dir: Path) -> Iterator[None]:
    """Hold the study's lock, which the system itself drops when this process ends, however it ends.

    Raises:
        ClusterError: another launcher holds it.
    """
    with only_holder(study_dir / LOCK_FILE, wait_s=0) as is_ours:
        if not is_ours:
            raise ClusterError(
                f"another launch of {study_dir} is at work", "wait for it, or end it, then launch again"
            )
        yield


# --- what the scheduler says -----------------------------------------------------------------


@dataclass(frozen=True)
class Scheduler:
    """One look at the queue and the accounts."""

    queue: dict[str, tuple[str, str]] | None
    """State and reason of each queued or running job of ours by id; None if squeue did not answer."""
    ended: dict[str, str] | None
    """State of each job that sacct knows; None if sacct did not answer."""
    starts: dict[str, str] = field(default_factory=dict)
    """When SLURM means to start each pending job, as in `2026-01-31T16:45:00`; `N/A` where it has no plan."""
    needs: dict[str, str] = field(default_factory=dict)
    """What each pending job depends on, as in `aftercorr:8_*(unfulfilled)`."""
    exits: dict[str, str] = field(default_factory=dict)
    """Exit code and signal of each job that sacct knows, as in `1:0`."""

    def can_never_start(self, element: str) -> bool:
        """Whether a job is pending for ever, because what it waits for has failed."""
        return (self.queue or {}).get(element, ("", ""))[1] == "DependencyNeverSatisfied"

    def hopeless(self) -> set[str]:
        """Jobs that are pending for ever: what they need has failed, or is itself pending for ever."""
        dead = {job for job in self.queue or {} if self.can_never_start(job)}
        while more := {job for job in self.needs if job not in dead and any(self._needed(job, dead))}:
            dead |= more
        return dead

    def undecided(self) -> set[str]:
        """Jobs that still wait for one that has left the queue: SLURM has yet to look at them."""
        queue = self.queue or {}
        waiting = {job for job, (_, reason) in queue.items() if reason == "Dependency"}
        return {job for job in waiting & self.needs.keys() if not all(self._needed(job, queue.keys()))}

    def _needed(self, job: str, among: Set[str]) -> list[Set[str]]:
        """For each job that one can only start after: which of these it is, element by element."""
        needed: list[Set[str]] = []
        for condition, parent in NEEDS.findall(self.needs[job]):
            if condition == "aftercorr":
                needed.append(among & {parent, f"{parent}_{job.partition('_')[2]}"})
            else:
                needed.append({one for one in among if one.partition("_")[0] == parent})
        return needed

    def state(self, record: JobRecord, index: int) -> tuple[str, str]:
        """(state, reason) of one element: SLURM's state, GONE (ended, nobody knows how) or UNKNOWN.

        A local job that was ended on purpose is CANCELLED or INTERRUPTED.
        """
        if record.cluster == "local":
            return ("RUNNING" if is_running_here(record) else record.end.upper() or "GONE"), ""
        element = record.element(index)
        if self.queue is None:
            return "UNKNOWN", "squeue does not answer"
        if element in self.queue:
            state, reason = self.queue[element]
            return state, "" if reason == "None" or state in RUNNING else reason  # held: if it is requeued
        if self.ended is None:
            return "GONE", "sacct does not answer"
        if self.ended.get(element) in RUNNING + QUEUED:  # squeue knows better
            return "GONE", "not yet in the accounts"
        if element in self.ended:
            return self.ended[element], ""
        if record.is_array and record.id in self.ended:  # for a moment after the end, the id lacks its index
            return "GONE", "not yet in the accounts"
        # an element cancelled while it was pending leaves no trace of its own, only of its array
        has_parent = any(job.split("_")[0] == record.id for job in self.ended)
        return ("CANCELLED", "before it started") if has_parent else ("GONE", "not in the accounts")


def ask_scheduler(records: list[JobRecord], with_accounts: bool = True) -> Scheduler:
    """Ask squeue, and sacct if wanted, about the SLURM jobs among `records`, once each."""
    ids = sorted({record.id for record in records if record.cluster == "slurm"})
    if not ids:
        return Scheduler({}, {})
    # all jobs of this user: asking for an id that SLURM has forgotten is an error
    queue = _ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%j|%r|%S|%E")
    ended = None
    if with_accounts:
        flags = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,JobName,ExitCode")
        ended = _ask("sacct", *flags, f"--jobs={','.join(ids)}")
    names = {record.id: record.name for record in records if record.name}
    waiting, past = _rows(queue or "", 6, names), _rows(ended or "", 4, names)
    return Scheduler(
        None if queue is None else {job: (state, reason) for job, state, _, reason, _, _ in waiting},
        None if ended is None else {job: state.split()[0] for job, state, _, _ in past},
        starts={row[0]: row[4] for row in waiting},
        needs={row[0]: row[5] for row in waiting},
        exits={row[0]: row[3] for row in past},
    )


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_LIMIT_S,
            check=True,
            env=clean_environment(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _rows(text: str, columns: int, names: dict[str, str]) -> list[list[str]]:
    """The whole rows, but those of jobs that only have an id of ours: their third column is another name."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    whole = [row for row in rows if len(row) == columns and all(row[:2])]
    return [row for row in whole if names.get(row[0].partition("_")[0], row[2]) == row[2]]


def is_running_here(record: JobRecord) -> bool:
    """Whether a local job's controlling process is alive on this machine."""
    if record.host != socket.gethostname():
        return False
    try:
        return b"submitit" in Path(f"/proc/{record.id}/cmdline").read_bytes()
    except OSError:
        return False


# --- what that means for a study --------------------------------------------------------------

RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT")
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")


@dataclass(frozen=True)
class RunState:
    """Everything one row of `status` tells."""

    name: str
    state: str
    """done, scoring, trained, training, queued, failed, cancelled, stopped, missing or unknown."""
    detail: str
    """Why, in SLURM's words, where that helps."""
    step: int
    total_steps: int
    epoch: float
    loss: float | None
    images_per_s: float | None
    eta_s: float | None
    restarts: int
    scores: dict[str, float]
    label: str
    """What the scores must carry with them, as in `smoke, not comparable`."""
    goodput: float | None = None
    """Share of its allocated time, in 0..1, spent in steps whose results survived; see vae/goodput.py."""


def study_states(study_dir: Path, study: Study) -> list[RunState]:
    """The state of every run, in the order of study.yaml."""
    return all_states({study_dir: study})[study_dir]


def all_states(studies: dict[Path, Study]) -> dict[Path, list[RunState]]:
    """The state of every run of several studies, by the study's folder; SLURM is asked once."""
    records = {study_dir: read_jobs(study_dir, study) for study_dir, study in studies.items()}
    scheduler = ask_scheduler([record for known in records.values() for record in known])
    return {
        study_dir: [
            run_state(study_dir / name, study, index, records[study_dir], scheduler)
            for index, name in enumerate(study.runs)
        ]
        for study_dir, study in studies.items()
    }


def run_state(
    run_dir: Path, study: Study, index: int, records: list[JobRecord], scheduler: Scheduler
) -> RunState:
    """The state of one run."""
    state, detail = _merge(run_dir, study, index, records, scheduler)
    scores = read_json(run_dir / SCORES_FILE) or {}
    attempts = (read_json(run_dir / PROVENANCE_FILE) or {}).get("attempts", [])
    values = {name: score.get("value") for name, score in scores.get("scores", {}).items()}
    start, tail = _ends(run_dir / METRICS_FILE)
    return RunState(
        name=run_dir.name,
        state=state,
        detail=detail,
        restarts=max(0, len(attempts) - 1),
        scores={name: value for name, value in values.items() if isinstance(value, (int, float))},
        label=scores.get("label", ""),
        goodput=goodput(attempts, tail),
        **_progress(start, tail),
    )


def _merge(
    run_dir: Path, study: Study, index: int, records: list[JobRecord], scheduler: Scheduler
) -> tuple[str, str]:
    """(state, detail): what is finished by our files, what goes on by the scheduler."""
    kind = "evaluate" if is_trained(run_dir) else "train"
    if is_scored(run_dir, study):
        return "done", ""
    state, reason = _newest(kind, index, records, scheduler)
    if state in RUNNING:
        return ("scoring" if kind == "evaluate" else "training"), reason
    if state in QUEUED:
        return ("trained" if kind == "evaluate" else "queued"), reason
    if kind == "evaluate" and state in ("", "GONE", "INTERRUPTED", "COMPLETED"):
        return "trained", ""
    words = {
        "": "missing",
        "GONE": "stopped",
        "UNKNOWN": "unknown",
        "CANCELLED": "cancelled",
        "COMPLETED": "stopped",
        "INTERRUPTED": "stopped",
    }
    if not state and (run_dir / METRICS_FILE).exists():
        return "stopped", ""
    detail = [reason if state in words else f"{kind} {state}"]
    if state == "INTERRUPTED":
        detail = ["interrupted"]
    if state in ("CANCELLED", "INTERRUPTED") and (saved := saved_step(run_dir)):
        detail += [f"saved at step {saved:,}"]
    return words.get(state, "failed"), ", ".join(filter(None, detail))


def _newest(kind: str, index: int, records: list[JobRecord], scheduler: Scheduler) -> tuple[str, str]:
    """(state, reason) of the live job of that kind, else of the newest; two empty texts without any."""
    record = newest_job(kind, index, records, scheduler)
    return scheduler.state(record, index) if record else ("", "")


def newest_job(kind: str, index: int, records: list[JobRecord], scheduler: Scheduler) -> JobRecord | None:
    """The live job of that kind for one run, else the newest; None without any."""
    found = [record for record in reversed(records) if record.kind == kind and index in record.indices]
    live = (record for record in found if scheduler.state(record, index)[0] in RUNNING + QUEUED)
    return next(live, found[0] if found else None)


def study_facts(
    study_dir: Path, study: Study, asked: tuple[str, ...], data_dir: Path, num_shards: int | None
) -> StudyFacts:
    """What `request.decide` needs to know of the runs `asked` for; `num_shards` is None for packed data.

    SLURM is asked only about what is not finished, so a finished study needs no SLURM that remembers it.

    Raises:
        ClusterError: SLURM does not answer, so nobody knows what is already running.
    """
    is_packed = num_shards is None
    records, data_records = read_jobs(study_dir, study), [] if is_packed else read_records(data_dir)
    scheduler = ask_scheduler([*records, *data_records], with_accounts=False)
    is_reported = has_report(study_dir, study)

    def run_facts(name: str, index: int) -> RunFacts:
        trained, scored = is_trained(study_dir / name), is_scored(study_dir / name, study)
        train_job = "" if trained else live_job("train", index, records, scheduler)
        evaluate_job = "" if scored else live_job("evaluate", index, records, scheduler)
        stop_s = 0.0 if trained else slowest_stop_s(study_dir / name)
        return RunFacts(name, index, trained, scored, train_job, evaluate_job, stop_s)

    return StudyFacts(
        study_dir,
        runs=tuple(run_facts(name, index) for index, name in enumerate(study.runs) if name in asked),
        data_dir=data_dir,
        is_packed=is_packed,
        num_shards=num_shards or 0,
        pack_job=live_job("finalize", 0, data_records, scheduler),
        has_report=is_reported,
        report_job="" if is_reported else live_job("report", 0, records, scheduler),
    )


def has_report(study_dir: Path, study: Study) -> bool:
    """Whether the report is there and newer than everything it tells of."""
    times = [
        path.stat().st_mtime
        for name in study.runs
        for path in (study_dir / name / DONE_FILE, study_dir / name / SCORES_FILE)
        if path.exists()
    ]
    report = study_dir / REPORT_FILE
    return report.exists() and report.stat().st_mtime >= max(times, default=0.0)


def live_job(kind: str, index: int, records: list[JobRecord], scheduler: Scheduler) -> str:
    """Id of the queued or running job of that kind for one run; empty if there is none.

    Raises:
        ClusterError: SLURM does not answer, so nobody knows.
    """
    for record in reversed(records):
        if record.kind != kind or index not in record.indices:
            continue
        if record.cluster == "local":
            if is_running_here(record):
                raise ClusterError(
                    f"process {record.id} is at work on this study",
                    "wait for it, or end it, then launch again",
                )
            continue
        if scheduler.queue is None:
            raise ClusterError(
                f"squeue does not answer, so job {record.id} may still be running",
                f"try again later; if that SLURM is gone for good, remove the study's {JOBS_FILE}",
            )
        element = record.element(index)
        if element in scheduler.queue and not scheduler.can_never_start(element):
            return element
    return ""


def progress(run_dir: Path) -> dict[str, Any]:
    """Where the training is, from metrics.jsonl: step, total_steps, epoch, loss, images_per_s, eta_s."""
    return _progress(*_ends(run_dir / METRICS_FILE))


def _progress(start: dict[str, Any], tail: list[dict[str, Any]]) -> dict[str, Any]:
    begins = [place for place, line in enumerate(tail) if line.get("kind") == "start"]
    own = tail[begins[-1] :] if begins else tail  # no pace over the time in which it waited to go on
    steps = [line for line in tail if line.get("kind") == "step"]
    last: dict[str, Any] = next((line for line in reversed(tail) if "step" in line), {})
    total = int(start.get("total_steps", 0))
    step = int(last.get("step", 0))
    eta_s = None
    paced = [line for line in own if line.get("kind") == "step"][-2:]
    if len(paced) == 2 and paced[1]["step"] > paced[0]["step"]:
        pace = (paced[1]["time"] - paced[0]["time"]) / (paced[1]["step"] - paced[0]["step"])
        eta_s = max(0.0, (total - step) * pace)
    newest = steps[-1] if steps else {}
    return {
        "step": step,
        "total_steps": total,
        "epoch": step / start["steps_per_epoch"] if start.get("steps_per_epoch") else 0.0,
        "loss": newest.get("loss"),
        "images_per_s": newest.get("images_per_s"),
        "eta_s": eta_s,
    }


def saved_step(run_dir: Path) -> int:
    """The newest step that a training can go on from; 0 if none is saved."""
    return max((int(path.name[5:]) for path in run_dir.glob("checkpoints/step_*")), default=0)


def _ends(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of metrics.jsonl, and those that `goodput` and `_progress` need of its last ones.

    Those are the lines from a start or a save on, of the many that tell of steps the last two alone; a
    half-written line is left out.
    """
    try:
        with path.open("rb") as file:
            first = file.readline()
            size, length = file.seek(0, os.SEEK_END), TAIL_BYTES
            while not MARK.search(tail := _last_lines(file, size, length)) and length < size:
                length *= 4
    except FileNotFoundError:
        return {}, []
    texts = [line for line in tail.splitlines(keepends=True) if line.endswith(b"\n")]
    idle = set([place for place, line in enumerate(texts) if line.startswith(STEP)][:-2])
    start = json.loads(first) if first.endswith(b"\n") else {}
    return start, [json.loads(line) for place, line in enumerate(texts) if place not in idle]


def _last_lines(file: BinaryIO, size: int, length: int) -> bytes:
    """The whole lines among the last `length` of `size` bytes."""
    file.seek(max(0, size - length))
    data = file.read(length)
    return data if length >= size else data[data.find(b"\n") + 1 :]


def find_study(asked: str, runs_dir: Path) -> Path:
    """Folder of the study that a user named: a path, or a name under the runs folder.

    Raises:
        SettingsError: neither is a study.
    """
    for folder in (Path(asked), runs_dir / asked):
        if is_study(folder):
            return folder.resolve()
    known = [path.name for path in find_studies(runs_dir)]
    raise SettingsError(
        f"no study {asked!r}. Known in {runs_dir}: {', '.join(known) or 'none'}.",
        "give a study's name, or its folder",
    )


def find_studies(runs_dir: Path) -> list[Path]:
    """The studies in a runs folder, by name."""
    return sorted(path for path in runs_dir.glob("*") if is_study(path))


def find_target(asked: str, runs_dir: Path) -> tuple[Path, str]:
    """Study folder and run name of what a user named: a study as above (no run name), or `STUDY/RUN`.

    Raises:
        SettingsError: neither is there.
    """
    for folder in (Path(asked), runs_dir / asked):
        path = folder.resolve()
        if not is_study(path) and is_study(path.parent):
            runs = read_study(path.parent).runs
            if path.name in runs:
                return path.parent, path.name
            raise SettingsError(f"no run {path.name!r} in {path.parent}", f"its runs are {', '.join(runs)}")
    return find_study(asked, runs_dir), ""
