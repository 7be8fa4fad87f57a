"""Which jobs a study still needs, and the exact text that asks SLURM for each: a pure decision.

    pack array -> finalize -> train array -> evaluate array -> report
             afterok       afterok       aftercorr         afterany

Nothing here reads a disk or talks to SLURM: state.py finds out what is there, submit.py acts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_prep.errors import SettingsError
from slurm.profile import ClusterProfile
from slurm.task import EvaluateTask, FinalizeTask, PackTask, ReportTask, Task, TrainTask

Kind = Literal["pack", "finalize", "train", "evaluate", "report"]

# Where submitit keeps what it runs, beside SLURM's own logs.
JOBS_DIR = "jobs"

# USR2 is ignored from the first instruction on, until Python has its handler: a warning that comes while
# torch is being imported would otherwise kill the job. A trap in the batch script does not reach the tasks.
LAUNCHER = 'bash -c \'trap "" USR2; exec "$@"\' task'

# A task that cannot reach SLURM itself (inside a container, say) leaves a file, and the script requeues it;
# and after 140, the exit code of what USR2 has killed: the warning came before that first instruction. (Of
# several ranks srun reports 143, because it ends the others; then the next launch goes on.)
REQUEUE = """\
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
if rm {jobs_dir}/"$job.requeue" 2>/dev/null || [ "${{code:-0}}" -eq 140 ]; then scontrol requeue "$job"; fi
exit "${{code:-0}}"
"""

# Ranks end together; when one has ended well and another has not after this long, it never will.
WAIT_FOR_RANKS_S = 300

# A script names this many of its elements.
MAX_NAMED = 12

# SLURM's own default: array indices are below this.
MAX_ARRAY_SIZE = 1001

# A job is warned this long before its time limit if no save of its run was ever measured, ...
FIRST_WARNING_S = 180
# ... else three times as long as the slowest took, and SLURM may be a minute late; but at least so long.
LEAST_WARNING_S = 120
WARNING_SLACK_S = 60
# A limit that leaves less than three times the warning for work would only restart the job over and over.
LEAST_LIMIT_PER_WARNING = 4


# --- what is there ---------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFacts:
    """What is known of one run before anything is decided."""

    name: str
    index: int
    """Position in study.yaml, which is its index in every array."""
    is_trained: bool = False
    is_scored: bool = False
    train_job: str = ""
    """Id of the queued or running job that trains it, as in `123_4`; empty if there is none."""
    evaluate_job: str = ""
    """Id of the queued or running job that scores it."""
    stop_s: float = 0.0
    """Longest time it has ever needed to save and, at the end of an epoch, validate; 0 = never measured."""


@dataclass(frozen=True)
class StudyFacts:
    """What is known of a study and its data before anything is decided."""

    study_dir: Path
    runs: tuple[RunFacts, ...]
    """The runs asked for; the study may hold more."""
    data_dir: Path
    is_packed: bool = True
    num_shards: int = 0
    pack_job: str = ""
    """Id of the queued or running job that will finish the shards."""
    has_report: bool = False
    """A report is there and newer than every score."""
    report_job: str = ""

    def any_job(self) -> str:
        """Id of a job that is at work, or will be, on this study or its data; empty if there is none."""
        jobs = [self.pack_job, self.report_job]
        jobs += [job for run in self.runs for job in (run.train_job, run.evaluate_job)]
        return next(filter(None, jobs), "")


@dataclass(frozen=True)
class Gang:
    """Processes that train one run together: one per GPU."""

    gpus: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        """Raise SettingsError unless every node gets the same number of GPUs."""
        if self.gpus < 1 or self.nodes < 1:
            raise SettingsError(f"--gpus {self.gpus} --nodes {self.nodes}; allowed: at least 1 each")
        if self.gpus % self.nodes:
            raise SettingsError(
                f"--gpus {self.gpus} cannot be spread evenly over --nodes {self.nodes}",
                "--gpus counts the GPUs of one run over all its nodes; make it a multiple of --nodes",
            )

    @property
    def gpus_per_node(self) -> int:
        return self.gpus // self.nodes


# --- what to do about it ---------------------------------------------------------------------


@dataclass(frozen=True)
class JobRequest:
    """One sbatch: a job, or an array with one element per task."""

    key: str
    """Name within the plan, for the jobs that wait for this one."""
    kind: Kind
    folder: Path
    """Study (or data) folder; logs and pickles go to its `jobs/`."""
    tasks: Mapping[int, Task]
    """Work by position: of the run in its study, of the part in its packing."""
    after: tuple[str, ...] = ()
    """What it waits for: `aftercorr:train` (a key of this plan) or `afterok:123_4` (a job's id)."""
    is_array: bool = True
    gang: Gang | None = None
    """Processes and GPUs of each element; None = one process without a GPU."""
    max_parallel: int = 0
    """Elements that may run at once; 0 = as many as there is room for."""
    offset: int = 0
    """Position of the element with array index 0: SLURM bounds the index, and a study may be longer."""
    stop_s: float = 0.0
    """Longest time that any of its runs has needed to save and stop, in seconds; 0 = never measured."""

    @property
    def name(self) -> str:
        """Job name, as squeue shows it."""
        return f"{self.folder.name}-{self.key}"


def decide(
    facts: StudyFacts, gang: Gang, pack_jobs: int, max_array_size: int = MAX_ARRAY_SIZE
) -> tuple[JobRequest, ...]:
    """The jobs to submit, in order: only what is neither done nor queued nor running."""
    pack = decide_pack(facts, min(pack_jobs, max_array_size))
    train = decide_train(facts, gang, _after_data(facts, pack), max_array_size)
    evaluate = decide_evaluate(facts, gang, max_array_size)
    report = decide_report(facts, evaluate)
    return (*pack, *train, *evaluate, *report)


def decide_pack(facts: StudyFacts, pack_jobs: int) -> tuple[JobRequest, ...]:
    """An array that packs the planned shards, and the job that joins them."""
    if facts.is_packed or facts.pack_job:
        return ()
    out, count = facts.data_dir, max(1, min(pack_jobs, facts.num_shards))
    tasks = {index: PackTask(str(out), index, count) for index in range(count)}
    join = {0: FinalizeTask(str(out))}
    return (
        JobRequest("pack", "pack", out, tasks),
        JobRequest("finalize", "finalize", out, join, after=("afterok:pack",), is_array=False),
    )


def _after_data(facts: StudyFacts, pack: tuple[JobRequest, ...]) -> tuple[str, ...]:
    if pack:
        return ("afterok:finalize",)
    return (f"afterok:{facts.pack_job}",) if facts.pack_job else ()


def decide_train(
    facts: StudyFacts, gang: Gang, after_data: tuple[str, ...], max_array_size: int
) -> tuple[JobRequest, ...]:
    """One array over all runs that are not trained nor being trained; several if SLURM's are too short."""
    due = [run for run in facts.runs if not run.is_trained and not run.train_job]
    chunks: dict[int, list[RunFacts]] = {}
    for run in due:
        chunks.setdefault(run.index // max_array_size, []).append(run)
    return tuple(
        JobRequest(
            key=numbered("train", chunk),
            kind="train",
            folder=facts.study_dir,
            tasks={run.index: TrainTask(str(facts.study_dir / run.name)) for run in runs},
            after=after_data,
            gang=gang,
            offset=chunk * max_array_size,
            stop_s=max(run.stop_s for run in runs),
        )
        for chunk, runs in chunks.items()
    )


def decide_evaluate(facts: StudyFacts, gang: Gang, max_array_size: int) -> tuple[JobRequest, ...]:
    """Arrays over the runs without scores, one for each thing that their runs wait for.

    Each element waits for the element of the same index (aftercorr) of one training array, so a run that
    fails holds up nobody else's scores. SLURM wants the same indices on both sides.
    """
    scoring = Gang(gang.gpus_per_node)  # one node has room enough, and is found sooner
    waits: dict[tuple[str, int], dict[int, Task]] = {}
    for run in facts.runs:
        if run.is_scored or run.evaluate_job:
            continue
        chunk = run.index // max_array_size
        after, offset = "", chunk * max_array_size
        if run.train_job and not run.is_trained:
            array, _, element = run.train_job.partition("_")
            after, offset = f"aftercorr:{array}", run.index - int(element) if element else offset
        elif not run.is_trained:
            after = f"aftercorr:{numbered('train', chunk)}"  # decide_train takes every other run
        waits.setdefault((after, offset), {})[run.index] = EvaluateTask(str(facts.study_dir / run.name))
    return tuple(
        JobRequest(
            key=numbered("evaluate", number),
            kind="evaluate",
            folder=facts.study_dir,
            tasks=tasks,
            after=(after,) if after else (),
            gang=scoring,
            offset=offset,
        )
        for number, ((after, offset), tasks) in enumerate(waits.items())
    )


def decide_report(facts: StudyFacts, evaluate: tuple[JobRequest, ...]) -> tuple[JobRequest, ...]:
    """The report, when every evaluation has ended, well or not."""
    running = [run.evaluate_job for run in facts.runs if run.evaluate_job]
    waits = [*(request.key for request in evaluate), *running]
    if not evaluate and (facts.has_report or facts.report_job):
        return ()
    after = tuple(f"afterany:{wait}" for wait in waits)
    tasks = {0: ReportTask(str(facts.study_dir))}
    return (JobRequest("report", "report", facts.study_dir, tasks, after, is_array=False),)


def numbered(key: str, number: int) -> str:
    """`train`, `train-1`, `train-2`, ..."""
    return f"{key}-{number}" if number else key


def with_cap(requests: tuple[JobRequest, ...], cap: int) -> tuple[JobRequest, ...]:
    """The requests, with at most `cap` runs that train, and that are scored, at once; 0 = no cap.

    Raises:
        SettingsError: there are more training arrays than that, and each runs one element at least.
    """
    trains = sum(request.kind == "train" for request in requests)
    if 0 < cap < trains:
        raise SettingsError(
            f"--max-parallel {cap}, but the study takes {trains} arrays, each of which runs one run at least",
            f"use --max-parallel {trains} or more, or launch fewer --seeds at a time",
        )
    if not cap:
        return requests
    capped: dict[str, int] = {}
    for kind in ("train", "evaluate"):
        keys = [request.key for request in requests if request.kind == kind]
        capped |= dict(zip(keys, shares(cap, len(keys)), strict=True))
    return tuple(replace(request, max_parallel=capped.get(request.key, 0)) for request in requests)


def shares(total: int, parts: int) -> list[int]:
    """`total` shared out evenly, the first ones a little more; at least 1 each."""
    return [max(1, total // parts + (part < total % parts)) for part in range(parts)]


# --- how to ask SLURM for it -----------------------------------------------------------------


def sbatch_text(request: JobRequest, profile: ClusterProfile, code_dir: Path, python: str) -> str:
    """The whole script for sbatch; only the dependencies, whose ids come later, are given beside it.

    Raises:
        SettingsError: a path holds what sbatch would read as something else.
    """
    for path in (request.folder, code_dir):
        check_path(path)
    code = shlex.quote(str(code_dir))
    flags = [sbatch_flag(name, value) for name, value in sbatch_flags(request, profile).items()]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {describe(request)}",
            *flags,
            "",
            "set -eo pipefail  # a setup line that fails stops the job",
            *profile.setup,
            f"cd {code}  # where Python looks first",
            f'export SUBMITIT_EXECUTOR=slurm PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            f"{srun_command(request, profile, python)} || code=$?",
            REQUEUE.format(jobs_dir=shlex.quote(str(request.folder / JOBS_DIR))),
        ]
    )


def describe(request: JobRequest) -> str:
    """One line that says what the job is: its work, and which array index means what."""
    if not request.is_array:
        return f"{request.kind} {request.folder.name}"
    elements = [f"{index - request.offset} = {element_name(task)}" for index, task in request.tasks.items()]
    shown = elements if len(elements) <= MAX_NAMED else [*elements[:MAX_NAMED], "..."]
    return f"{request.kind} {request.folder.name}: " + ", ".join(shown)


def element_name(task: Task) -> str:
    """What one element works on."""
    if isinstance(task, PackTask):
        return f"part {task.task + 1} of {task.tasks}"
    return Path(task.path).name


def sbatch_flags(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    """Every flag of the job, by name; an empty value means a bare flag."""
    gang = request.gang or Gang()
    element = "%A_%a" if request.is_array else "%j"
    mem_gb = profile.mem_per_gpu_gb * gang.gpus_per_node if request.gang else 0
    mem_gb = profile.pack_mem_gb if request.kind == "pack" else mem_gb
    flags = {
        "job-name": request.name,
        "array": array_spec(request) if request.is_array else None,
        "partition": profile.partition if request.gang else profile.cpu_partition or profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": gang.nodes,
        "ntasks-per-node": gang.gpus_per_node,
        profile.gpu_flag: gpu_amount(profile, gang) if request.gang else None,
        "cpus-per-task": cpus_per_task(request, profile),
        "mem": f"{mem_gb}G" if mem_gb else None,
        "time": limit_min(request.kind, profile),
        "signal": f"USR2@{warning_s(request, profile)}",
        "requeue": True,
        "open-mode": "append",  # an attempt adds to the log of the one before
        "kill-on-invalid-dep": "yes",  # or it would wait for ever for a job that has failed
        "output": request.folder / JOBS_DIR / f"{element}.log",
    }
    kept = {name: "" if value is True else str(value) for name, value in flags.items() if value}
    renamed = profile.rename or {}
    kept = {renamed.get(name, name): value for name, value in kept.items() if name not in profile.drop}
    return kept | {name: str(value) for name, value in (profile.extra or {}).items()}


def sbatch_flag(name: str, value: str) -> str:
    """One #SBATCH line; sbatch splits it at spaces outside quotes."""
    if not value:
        return f"#SBATCH --{name}"
    return f'#SBATCH --{name}="{value}"' if " " in value else f"#SBATCH --{name}={value}"


def gpu_amount(profile: ClusterProfile, gang: Gang) -> str:
    """GPUs of each node, as the site's flag wants them: `4`, `a100:4`, `gpu:4` or `gpu:a100:4`."""
    generic = ["gpu"] if profile.gpu_flag == "gres" else []
    kind = [profile.gpu_type] if profile.gpu_type else []
    return ":".join([*generic, *kind, str(gang.gpus_per_node)])


def cpus_per_task(request: JobRequest, profile: ClusterProfile) -> int:
    """CPU cores of each process."""
    if request.gang:
        return profile.cpus_per_gpu
    return profile.pack_cpus if request.kind == "pack" else 1


def limit_min(kind: Kind, profile: ClusterProfile) -> int:
    """Time limit of one job of that kind, in minutes."""
    if kind in ("finalize", "report"):
        return profile.report_limit_min
    return int(getattr(profile, f"{kind}_limit_min"))


def warning_s(request: JobRequest, profile: ClusterProfile) -> int:
    """Seconds before its time limit at which the job is asked to save and stop.

    Raises:
        SettingsError: the limit leaves too little time for work beside it.
    """
    limit_s = 60 * limit_min(request.kind, profile)
    if request.kind != "train":  # it has nothing to save
        return min(profile.warning_s or LEAST_WARNING_S, limit_s // LEAST_LIMIT_PER_WARNING)
    wanted = profile.warning_s or measured_warning_s(request.stop_s)
    if limit_s < LEAST_LIMIT_PER_WARNING * wanted:
        why = f", for its slowest save took {request.stop_s:.0f} s" if request.stop_s else ""
        raise SettingsError(
            f"train_limit_min = {limit_s // 60} leaves too little beside the warning that {request.name} "
            f"gets {wanted} s before it{why}",
            f"allow at least {math.ceil(LEAST_LIMIT_PER_WARNING * wanted / 60)} minutes, "
            "or set a shorter warning_s in the profile",
        )
    return wanted


def measured_warning_s(stop_s: float) -> int:
    """The warning that a run needs whose slowest save (and validation) took `stop_s` seconds."""
    if not stop_s:
        return FIRST_WARNING_S
    return max(LEAST_WARNING_S, math.ceil(3 * stop_s) + WARNING_SLACK_S)


def srun_command(request: JobRequest, profile: ClusterProfile, python: str) -> str:
    """The job's work: one process per GPU, all of which end when one fails.

    `--cpus-per-task` is said again because srun does not take it from sbatch in SLURM 22.05 and later.
    """
    jobs_dir = request.folder / JOBS_DIR
    element = "%A_%a" if request.is_array else "%j"
    srun = [
        "srun",
        "--unbuffered",
        "--open-mode=append",
        "--kill-on-bad-exit=1",
        f"--wait={WAIT_FOR_RANKS_S}",
    ]
    srun += [f"--cpus-per-task={cpus_per_task(request, profile)}", f"--output={jobs_dir}/{element}_%t.log"]
    runner = [shlex.quote(python), "-u", "-m", "submitit.core._submit", shlex.quote(str(jobs_dir))]
    container = [profile.container] if profile.container else []
    return " \\\n    ".join([shlex.join(srun), LAUNCHER, " ".join([*container, *runner])])


def array_spec(request: JobRequest) -> str:
    """The indices of an array, and how many elements may run at once: `0-2,5%2`."""
    indices = [index - request.offset for index in request.tasks]
    return index_list(indices) + (f"%{request.max_parallel}" if request.max_parallel else "")


def index_list(indices: Iterable[int]) -> str:
    """Array indices as sbatch writes them: {0, 1, 2, 5} is `0-2,5`."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def check_path(path: Path) -> None:
    """Raise SettingsError if sbatch would read `path` as something else: `%` is a pattern, quotes end it."""
    text = str(path)
    bad = sorted({char for char in text if char in "%\"'\\$`#" or not char.isprintable()})
    if bad:
        raise SettingsError(
            f"the path {text!r} holds {', '.join(map(repr, bad))}, which SLURM would misread",
            "use a folder whose name has none of % \" ' \\ $ ` # and no line breaks",
        )
