"""Which jobs a study still needs: a pure decision.

    pack array -> finalize -> train array -> evaluate array -> report
             afterok       afterok       aftercorr         afterany

Nothing here reads a disk or talks to SLURM: state.py finds out what is there, submit.py acts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from data_prep.errors import SettingsError
from slurm.client import MAX_ARRAY_SIZE
from slurm.node.task import EvaluateTask, FinalizeTask, JobKind, PackTask, ReportTask, Task, TrainTask


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
    num_shards: int | None = None
    """Shards to be packed; None when that is done."""
    pack_job: str = ""
    """Id of the queued or running job that will finish the shards."""
    has_report: bool = False
    """A report is there and newer than every score."""
    report_job: str = ""
    evaluate_jobs: tuple[str, ...] = ()
    """Ids of the queued or running jobs that score any run of the study, those not asked for included."""

    def any_job(self) -> str:
        """Id of a job that is at work, or will be, on this study or its data; empty if there is none."""
        of_runs = chain.from_iterable((run.train_job, run.evaluate_job) for run in self.runs)
        return next(filter(None, (self.pack_job, self.report_job, *of_runs)), "")


@dataclass(frozen=True)
class Resources:
    """Processes that train one run together: one per GPU."""

    gpus: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        """Raise SettingsError unless every node gets the same number of GPUs."""
        if self.gpus < 1 or self.nodes < 1:
            raise SettingsError(f"--gpus {self.gpus} --nodes {self.nodes}; allowed: at least 1 each")
        if self.gpus % self.nodes:
            hint = "--gpus counts the GPUs of one run over all its nodes; make it a multiple of --nodes"
            raise SettingsError(f"--gpus {self.gpus} cannot be spread evenly over --nodes {self.nodes}", hint)

    @property
    def gpus_per_node(self) -> int:
        return self.gpus // self.nodes


@dataclass(frozen=True)
class JobRequest:
    """One sbatch: a job, or an array with one array task for each of `tasks`."""

    key: str
    """Name within the plan, for the jobs that wait for this one."""
    kind: JobKind
    folder: Path
    """Study (or data) folder; logs and pickles go to its `jobs/`."""
    tasks: Mapping[int, Task]
    """Work by position: of the run in its study, of the part in its packing."""
    after: tuple[str, ...] = ()
    """What it waits for: `aftercorr:train` (a key of this plan) or `afterok:123_4` (a job's id)."""
    is_array: bool = True
    resources: Resources | None = None
    """Processes and GPUs of each array task; None = one process without a GPU."""
    max_parallel: int = 0
    """Array tasks that may run at once; 0 = as many as there is room for."""
    offset: int = 0
    """Position of the array task with index 0: SLURM bounds the index, and a study may be longer."""
    stop_s: float = 0.0
    """Longest time that any of its runs has needed to save and stop, in seconds; 0 = never measured."""

    @property
    def name(self) -> str:
        """Job name, as squeue shows it."""
        return f"{self.folder.name}-{self.key}"


def decide(
    facts: StudyFacts, resources: Resources, pack_jobs: int, max_array_size: int = MAX_ARRAY_SIZE
) -> tuple[JobRequest, ...]:
    """The jobs to submit, in order: only what is neither done nor queued nor running."""
    pack = decide_pack(facts, min(pack_jobs, max_array_size))
    join = "finalize" if pack else facts.pack_job
    after_data = (f"afterok:{join}",) if join else ()
    train = decide_train(facts, resources, after_data, max_array_size)
    evaluate = decide_evaluate(facts, resources, max_array_size)
    report = decide_report(facts, evaluate)
    return (*pack, *train, *evaluate, *report)


def decide_pack(facts: StudyFacts, pack_jobs: int) -> tuple[JobRequest, ...]:
    """An array that packs the planned shards, and the job that joins them."""
    if facts.num_shards is None or facts.pack_job:
        return ()
    out, count = facts.data_dir, max(1, min(pack_jobs, facts.num_shards))
    tasks = {index: PackTask(str(out), index, count) for index in range(count)}
    join = {0: FinalizeTask(str(out))}
    return (
        JobRequest("pack", JobKind.PACK, out, tasks),
        JobRequest("finalize", JobKind.FINALIZE, out, join, after=("afterok:pack",), is_array=False),
    )


def decide_train(
    facts: StudyFacts, resources: Resources, after_data: tuple[str, ...], max_array_size: int
) -> tuple[JobRequest, ...]:
    """One array over all runs that are not trained nor being trained; several if SLURM's are too short."""
    due = [run for run in facts.runs if not run.is_trained and not run.train_job]
    chunks: dict[int, list[RunFacts]] = {}
    for run in due:
        chunks.setdefault(run.index // max_array_size, []).append(run)
    return tuple(
        JobRequest(
            key=numbered("train", chunk),
            kind=JobKind.TRAIN,
            folder=facts.study_dir,
            tasks={run.index: TrainTask(str(facts.study_dir / run.name)) for run in runs},
            after=after_data,
            resources=resources,
            offset=chunk * max_array_size,
            stop_s=max(run.stop_s for run in runs),
        )
        for chunk, runs in chunks.items()
    )


def decide_evaluate(facts: StudyFacts, resources: Resources, max_array_size: int) -> tuple[JobRequest, ...]:
    """Arrays over the runs without scores, one for each thing that their runs wait for.

    Each array task waits for that of the same index (aftercorr) in one training array, so a run that fails
    holds up nobody else's scores. SLURM wants the same indices on both sides.
    """
    # which training the scores of each run wait for
    groups: dict[tuple[str, int], dict[int, Task]] = {}
    for run in facts.runs:
        if not run.is_scored and not run.evaluate_job:
            task = EvaluateTask(str(facts.study_dir / run.name))
            groups.setdefault(_training_of(run, max_array_size), {})[run.index] = task

    # an array for each of them
    scoring = Resources(resources.gpus_per_node)  # one node has room enough, and is free sooner
    return tuple(
        JobRequest(
            key=numbered("evaluate", number),
            kind=JobKind.EVALUATE,
            folder=facts.study_dir,
            tasks=tasks,
            after=(after,) if after else (),
            resources=scoring,
            offset=offset,
        )
        for number, ((after, offset), tasks) in enumerate(groups.items())
    )


def _training_of(run: RunFacts, max_array_size: int) -> tuple[str, int]:
    """The dependency of a run's scoring, empty if it is trained, and the position of its array's index 0."""
    chunk = run.index // max_array_size
    offset = chunk * max_array_size
    if run.is_trained:
        return "", offset
    if not run.train_job:  # then decide_train takes it
        return f"aftercorr:{numbered('train', chunk)}", offset
    array, _, index = run.train_job.partition("_")
    return f"aftercorr:{array}", run.index - int(index) if index else offset


def decide_report(facts: StudyFacts, evaluate: tuple[JobRequest, ...]) -> tuple[JobRequest, ...]:
    """The report, when every evaluation has ended, well or not."""
    if not evaluate and (facts.has_report or facts.report_job):
        return ()
    under_way = [*(run.evaluate_job for run in facts.runs if run.evaluate_job), *facts.evaluate_jobs]
    jobs = dict.fromkeys((*(request.key for request in evaluate), *under_way))
    after = tuple(f"afterany:{job}" for job in jobs)
    tasks = {0: ReportTask(str(facts.study_dir))}
    return (JobRequest("report", JobKind.REPORT, facts.study_dir, tasks, after, is_array=False),)


def numbered(key: str, number: int) -> str:
    """`train`, `train-1`, `train-2`, ..."""
    return f"{key}-{number}" if number else key


def with_cap(requests: tuple[JobRequest, ...], cap: int) -> tuple[JobRequest, ...]:
    """The requests, at most `cap` runs training (and scored) at once (0 = no cap), or SettingsError."""
    if not cap:
        return requests
    arrays = sum(request.kind is JobKind.TRAIN for request in requests)
    if cap < arrays:
        few = (
            f"--max-parallel {cap}, but the study takes {arrays} arrays, each of which runs one run at least"
        )
        raise SettingsError(few, f"use --max-parallel {arrays} or more, or launch fewer --seeds at a time")
    caps = zip(requests, shares(cap, [request.kind for request in requests]), strict=True)
    return tuple(replace(request, max_parallel=share if request.resources else 0) for request, share in caps)


def shares(cap: int, kinds: Sequence[JobKind]) -> Iterator[int]:
    """How much of `cap` each of these arrays gets: those of one kind share it evenly, at least 1 each."""
    totals, before = Counter(kinds), Counter[JobKind]()
    for kind in kinds:
        yield max(1, cap // totals[kind] + (before[kind] < cap % totals[kind]))
        before[kind] += 1
