"""The log files of a run, by attempt and rank, and the line in them that says what went wrong."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from slurm.job_handle import handle_of
from slurm.job_records import JobRecord
from slurm.node.task import JobKind
from vae.run_dir import JOBS_DIR, LOG_NAME, LOGS_DIR

TAIL_BYTES = 64 * 1024
MAX_ERROR_CHARS = 300

# The last line of a traceback, a program's own `error: ...`, or what bash says of a line of a job's script.
ERROR = re.compile(
    r"(?:(?:[A-Za-z_]\w*\.)*(?=[A-Z]\w*(?:Error|Exception|Interrupt)\b)"
    r"|(?=error: )|(?:(?:\S*/)?slurm_script|task): (?=line \d+: ))(.*)"
)
# What SLURM's own programs write of an end; that a task has exited says nothing about why.
NOTICE = re.compile(r"^(slurmstepd|srun)\S*: (?:error: )?(.*(?:CANCELLED|oom|Out Of Memory|Killed).*)")
# So it tells that srun ends the other ranks; why it does, srun says itself.
STEP_ENDED = re.compile(r"STEP \S+ ON \S+ CANCELLED AT \S+ \*\*\*$")
# What SLURM's programs and containers complain of; not how a task has ended, and that others end now.
COMPLAINT = re.compile(r"(?:srun|slurmstepd\S*|sbatch|scontrol): (?:error|fatal): (.*)|((?:FATAL|ERROR):.*)")
NO_COMPLAINT = re.compile(
    r"(\S+: )?tasks? \S+: |\*\*\* |(Timed out|Job step aborted|Waiting|forcing|spank)|Terminating"
)
# An attempt at a job ends so; what stands above it is of earlier ones.
REQUEUED = re.compile(r"CANCELLED AT \S+ DUE TO (JOB REQUEUE|PREEMPTION|NODE FAILURE)")
# So many lines of a log are shown where none says what went wrong.
LAST_LINES = 3
# After slurmstepd has said why it ends a job, srun says that the tasks were killed.
LINES_AFTER_NOTICE = 8


@dataclass(frozen=True)
class AttemptLogs:
    """The log of each rank of one start of one job."""

    kind: JobKind
    job: str
    restart: int
    logs: dict[int, Path]

    @property
    def label(self) -> str:
        again = f", restart {self.restart}" if self.restart else ""
        return f"{self.kind}, job {self.job}{again}"


def find_attempts(run_dir: Path, index: int, records: list[JobRecord]) -> list[AttemptLogs]:
    """All attempts at a run that have left a log, oldest first."""
    # what each rank of a job has written itself
    by_attempt = defaultdict[tuple[JobKind, str, int], dict[int, Path]](dict)
    for path in (run_dir / LOGS_DIR).glob("*"):
        if name := LOG_NAME.fullmatch(path.name):
            by_attempt[JobKind(name["kind"]), name["job"], int(name["restart"])][int(name["rank"])] = path

    # jobs that ended before they could open a log of their own
    with_own_log = {job for _, job, _ in by_attempt}
    for record in records:
        job = handle_of(record).log_tag(index)
        is_of_run = record.kind in (JobKind.TRAIN, JobKind.EVALUATE) and index in record.indices
        if is_of_run and job not in with_own_log and (logs := rank_logs(run_dir.parent, record, index)):
            by_attempt[record.kind, job, 0] = logs

    attempts = [AttemptLogs(*key, logs=dict(sorted(logs.items()))) for key, logs in by_attempt.items()]
    return sorted(attempts, key=lambda attempt: (last_change(attempt), attempt.restart))


def last_change(attempt: AttemptLogs) -> float:
    """When anything was last written to the logs of an attempt, in Unix seconds."""
    return max(path.stat().st_mtime for path in attempt.logs.values())


def rank_logs(study_dir: Path, record: JobRecord, index: int) -> dict[int, Path]:
    """What SLURM, or submitit on this machine, has caught of each rank of a job."""
    if not os.access(study_dir / JOBS_DIR, os.X_OK):
        return {}  # there is none, or it is another user's
    job = record.array_task(index)
    ending = handle_of(record).log_ending
    # `8_1.log` is rank 1 of job 8, but all of task 1 of array 8
    paths = (study_dir / JOBS_DIR).glob(f"{job}_*{ending}")
    ranks = {path.name.removeprefix(f"{job}_").removesuffix(ending): path for path in paths}
    logs = {int(rank): path for rank, path in ranks.items() if rank.isdigit() and path.stat().st_size}
    whole = study_dir / JOBS_DIR / f"{job}.log"
    if not logs and whole.exists() and whole.stat().st_size:
        logs[0] = whole
    return logs


def job_logs(run_dir: Path, index: int, record: JobRecord) -> list[list[str]]:
    """The lines of a job's newest attempt: of each rank, that which fell silent first; then of its script."""
    job = handle_of(record).log_tag(index)
    attempts = [attempt for attempt in find_attempts(run_dir, index, [record]) if attempt.job == job]
    own_logs = attempts[-1].logs.values() if attempts else ()
    paths = sorted(own_logs, key=lambda path: path.stat().st_mtime)
    paths += rank_logs(run_dir.parent, record, index).values()
    paths.append(run_dir.parent / JOBS_DIR / f"{record.array_task(index)}.log")
    return [newest_attempt(tail(path)) for path in dict.fromkeys(paths)]


def newest_attempt(lines: list[str]) -> list[str]:
    """What follows the last requeue in a log that all attempts at a job add to."""
    ends = [number for number, line in enumerate(lines, 1) if REQUEUED.search(line)]
    return lines[ends[-1] :] if ends else lines


def from_error_on(logs: Iterable[list[str]]) -> list[str]:
    """The last exception, or what bash said of a line of its script, and what follows it; or nothing."""
    for lines in logs:
        for number in reversed(range(len(lines))):
            if ERROR.match(lines[number]):
                return lines[number:]
    return []


def last_error(logs: Iterable[list[str]]) -> str:
    """The error that ended a job: an exception, or a complaint of SLURM's programs; or empty."""
    logs = list(logs)
    if lines := from_error_on(logs):
        return shorten(ERROR.sub(r"\1", lines[0]))
    complaints = (match for match in map(COMPLAINT.match, chain.from_iterable(logs)) if match)
    texts = (match[1] or match[2] for match in complaints)
    return shorten(next((text for text in texts if not NO_COMPLAINT.match(text)), ""))


def last_lines(logs: Iterable[list[str]]) -> tuple[str, ...]:
    """The end of the first log that holds anything."""
    for lines in logs:
        if said := [line for line in lines if line.strip()]:
            return tuple(map(shorten, said[-LAST_LINES:]))
    return ()


def last_notice(study_dir: Path, record: JobRecord, index: int) -> str:
    """The last thing SLURM itself wrote into a job's log about its end; empty if it wrote nothing."""
    lines = tail(study_dir / JOBS_DIR / f"{record.array_task(index)}.log")
    while lines and not NOTICE.match(lines[-1]):
        lines.pop()
    notices = [match for match in map(NOTICE.match, lines[-1 - LINES_AFTER_NOTICE :]) if match]
    # slurmstepd knows more than srun, and what a step was ended for is not said by its end
    causes = [notice for notice in notices if not STEP_ENDED.search(notice[2])] or notices
    of_step = [notice for notice in causes if notice[1] == "slurmstepd"] or causes
    return shorten(of_step[-1][2]) if of_step else ""


def shorten(text: str) -> str:
    """At most MAX_ERROR_CHARS of a line, without what ends a sentence."""
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split()).rstrip(".;")
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 3] + "..."


def tail(path: Path) -> list[str]:
    """The last lines of a file, whatever its encoding; none if it is not there."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
        return lines[1:] if size > TAIL_BYTES else lines
    return []
