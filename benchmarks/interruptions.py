"""Interrupt runs at random moments on a real SLURM cluster, and compare their ends with unbroken runs.

Studies of both variants are launched as a user would launch them, three at once: on one GPU per run, and on
two nodes with two ranks in double precision. Their trainings are warned, requeued, terminated, cancelled,
preempted, killed, reach a time limit or lose their node, while they start, train, save, end or are scored;
what SLURM has ended is launched again with the same command. What was cancelled, by jobs/cancel.py or by
scancel, must not come back by itself. At the end every run must be complete and like the unbroken
run: bit for bit on one rank, losses within 1e-9 on two. Nothing may be lost after a warning, else at most the
checkpoint interval; nothing may be left behind: no job, process, lock or half-written file.

    python benchmarks/interruptions.py --count 100 --seed 0
    python benchmarks/interruptions.py --minutes 3      # as many as that allows, then the end of all runs

Needs what tests/devcluster.py needs. Exit code 1 if anything is not as it must be.
"""

import argparse
import collections
import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
sys.path.insert(0, str(REPOSITORY))

# a cluster of one's own may be asked often; read when slurm.client is imported, here and in each launch
os.environ.setdefault("CXR_SQUEUE_EVERY_S", "0.4")

import msgspec
from devcluster import NODES, DevCluster, is_alive, wait_for
from tiny import TINY_FLAGS, make_run, make_shards

from data_prep.errors import DamagedFile
from data_prep.files import only_holder
from data_prep.verify import verify
from slurm.client import QueueWatch
from slurm.drill.faulted_study import FaultedStudy, Target, launch_with_faults, read_starts
from slurm.drill.faults import (
    LATEST_SHARE,
    FaultKind,
    InjectedFault,
    Injection,
    Moment,
    PlannedFault,
    RunFaults,
    assign,
    faults_at,
    on_slurm,
)
from slurm.drill.verdict import Restart, judge_run, judge_study, read_restarts
from slurm.job_records import read_records
from slurm.local import send_signal
from vae.metrics import read_progress
from vae.run_dir import TRAINING_LOCK_FILE
from vae.study import is_scored

VARIANTS = ("linear", "direct")
PROFILE = REPOSITORY / "tests" / "devcluster.yaml"
AT_ONCE = 3
FAULTS_PER_STUDY = 15
# Up to here a run is worth another interruption.
EARLY = 0.6
TICK_S = 0.2
STUDY_LIMIT_S = 1200

SETTINGS = {"epochs": 10_000, "log_every_steps": 10}
FLAGS = ("--variant", "both", "--data", "shards", "--cluster", "slurm")

# What is planned, shuffled, again and again.
CANCELS = (FaultKind.CANCELLED, FaultKind.SCANCELLED)
KINDS_TRAINING = (
    *[FaultKind.WARNED] * 3,
    *[FaultKind.REQUEUED, FaultKind.KILLED] * 2,
    *CANCELS,
    *(FaultKind.TERMINATED, FaultKind.RANK_KILLED, FaultKind.NODE_LOST),
    *(FaultKind.PREEMPTED, FaultKind.PREEMPTED_AT_ONCE),
)
KINDS_SAVING = (FaultKind.WARNED, FaultKind.TERMINATED, FaultKind.RANK_KILLED, FaultKind.RANK_KILLED)
MIX = (
    *faults_at(Moment.TRAINING, *KINDS_TRAINING),
    *faults_at(Moment.STARTING, FaultKind.WARNED, FaultKind.REQUEUED, FaultKind.RANK_KILLED, *CANCELS),
    *faults_at(Moment.WARNED, *CANCELS, *CANCELS),
    *faults_at(Moment.SAVING, *KINDS_SAVING, *CANCELS),
    *faults_at(Moment.ENDING, FaultKind.WARNED, FaultKind.KILLED),
    *faults_at(Moment.SCORING, FaultKind.WARNED, *CANCELS),
)
# These hit every run that is training.
WIDE = (FaultKind.PREEMPTED, FaultKind.PREEMPTED_AT_ONCE, FaultKind.NODE_LOST)


@dataclass(frozen=True)
class Case:
    """One kind of study: where its runs run, and for how long."""

    name: str
    gpus: int
    nodes: int
    precision: str
    steps: int
    checkpoint_every_s: float = 1.2
    has_limit: bool = False
    """Slow enough to be trained until a time limit that is set in the middle of it."""

    def settings(self) -> dict[str, object]:
        """Settings of its runs beside the tiny ones."""
        every_min = self.checkpoint_every_s / 60
        own = {"max_steps": self.steps, "precision": self.precision, "checkpoint_every_min": every_min}
        return {**SETTINGS, **own}


# Long enough for a dozen interruptions. The first saves most of the time: that lasts without much work, and
# many interruptions fall into a save.
CASES = (
    Case("saving", 1, 1, "fp32", steps=2000, checkpoint_every_s=0.03, has_limit=True),
    Case("two", 2, 2, "fp64", steps=1000),
    Case("one", 1, 1, "fp32", steps=2000),
)


# --- what only root of the test cluster can do ---------------------------------------------------------


class ClusterInjector:
    """What a user can do to a job, and administrators, other users and broken machines."""

    def __init__(self, cluster: DevCluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng

    def prepare(self, fault: PlannedFault, job: str) -> Injection:
        """As `on_slurm`; a save is over in milliseconds, so what falls into one is sent without SLURM."""
        if fault.kind in (FaultKind.PREEMPTED, FaultKind.PREEMPTED_AT_ONCE):
            return partial(self.preempt, 10 if fault.kind is FaultKind.PREEMPTED else 0)
        if fault.kind is FaultKind.TIME_LIMIT:
            return partial(self.limit, job)
        if fault.kind is FaultKind.NODE_LOST:
            return partial(self.lose_node, job)
        if fault.kind is FaultKind.RANK_KILLED:
            ranks = self.ranks(job)
            return partial(send_signal, [self.rng.choice(ranks)] if ranks else [], signal.SIGKILL)
        numbers = {FaultKind.WARNED: signal.SIGUSR2, FaultKind.TERMINATED: signal.SIGTERM}
        if fault.moment is Moment.SAVING and fault.kind in numbers:
            return partial(send_signal, self.ranks(job), numbers[fault.kind])
        return on_slurm(fault, job)

    def ranks(self, job: str) -> list[int]:
        """Processes of a job's tasks; not the srun that holds their command: TERM would let it kill them."""
        raw = self.cluster.run("squeue", "-h", "-j", job, "-o", "%A", check=False).strip()
        ranks = []
        for pid in self.cluster.left_behind():
            environment, command = about(pid)
            is_task = b"submitit.core._submit" in command and b"srun" not in command.split(b"\0")[0]
            if is_task and f"SLURM_JOB_ID={raw}".encode() in environment:
                ranks.append(pid)
        return ranks

    def preempt(self, grace_s: int) -> bool:
        """A job in the urgent partition takes both nodes whole: every running job is stopped and requeued."""
        self.cluster.run("scontrol", "update", "PartitionName=gpu", f"GraceTime={grace_s}")
        flags = ["--partition=urgent", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null"]
        command = ["sbatch", *flags, "--job-name=urgent", "--wrap=sleep 1"]
        return self.cluster.succeeds(*command)

    def limit(self, job: str) -> bool:
        """The job has less than a minute left, so SLURM warns it within half a minute; then five again."""
        minutes = self.cluster.run("squeue", "-h", "-j", job, "-o", "%M", check=False).strip().split(":")[0]
        shorten, lengthen = (
            ("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
            for limit in (int(minutes or 0) + 1, 5)
        )
        threading.Timer(40, self.cluster.succeeds, lengthen).start()
        return self.cluster.succeeds(*shorten)

    def lose_node(self, job: str) -> bool:
        """A node that the job runs on dies with everything on it, and comes back."""
        nodes = self.cluster.run("squeue", "-h", "-j", job, "-o", "%N", check=False)
        own = [node for node in NODES if node[1:] in nodes]  # as in n1, or n[1-2]
        if not own:
            return False
        node = self.rng.choice(own)
        stop_hard(self.cluster.pids[f"slurmd-{node}"])
        for pid in self.cluster.left_behind():
            environment, command = about(pid)
            if f"SLURMD_NODENAME={node}".encode() in environment or node.encode() in command:
                stop_hard(pid)
        time.sleep(self.rng.uniform(0.5, 2))
        self.cluster.start(f"slurmd-{node}", ["slurmd", "-D", "-N", node])
        return True


def share_of(target: Target) -> float:
    """How far a run is, from 0 to 1."""
    progress = read_progress(target.run_dir)
    return progress.step / max(progress.total_steps, 1)


def about(pid: int) -> tuple[list[bytes], bytes]:
    """Environment and command of a process; nothing if it has just ended."""
    try:
        process = Path(f"/proc/{pid}")
        return (process / "environ").read_bytes().split(b"\0"), (process / "cmdline").read_bytes()
    except OSError:
        return [], b""


def stop_hard(pid: int) -> None:
    """kill -9, and wait until it is gone."""
    send_signal([pid], signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), 10, lambda: f"process {pid} does not end")


# --- the studies -----------------------------------------------------------------------------------------


class Bench:
    """The cluster, the studies on it, and what has been done to them."""

    def __init__(self, cluster: DevCluster, folder: Path, seed: int) -> None:
        self.cluster, self.folder = cluster, folder
        self.rng = random.Random(seed)
        self.injector = ClusterInjector(cluster, self.rng)
        self.watch = QueueWatch()
        self.schedule = self.endless_schedule()
        self.numbers = itertools.count()
        self.drills: dict[str, tuple[Case, FaultedStudy]] = {}
        self.injected: collections.Counter[str] = collections.Counter()
        self.launches = 0

    def endless_schedule(self) -> Iterator[PlannedFault]:
        """The mix, shuffled anew whenever it is used up."""
        while True:
            yield from self.rng.sample(MIX, len(MIX))

    def launch(self, study: str, case: Case) -> bool:
        """Launch, or launch again, one study; there must be no other answer than yes."""
        words = [*FLAGS, *TINY_FLAGS, "--study", study, "--profile", str(PROFILE)]
        words += ["--gpus", str(case.gpus), "--nodes", str(case.nodes)]
        words += [word for name, value in case.settings().items() for word in (f"--run.{name}", str(value))]
        command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words]
        done = subprocess.run(command, cwd=self.folder, env=self.cluster.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"launch failed: {done.stderr}")
        self.launches += 1
        return True

    def start(self, num_faults: int) -> None:
        """Launch the next study, with so many interruptions planned."""
        number = next(self.numbers)
        case = CASES[number % len(CASES)]
        faults = list(itertools.islice(self.schedule, num_faults))
        name = f"{case.name}-{number}"
        plan = assign(faults, [f"{variant}-s0" for variant in VARIANTS], self.rng)
        if case.has_limit:
            for planned in plan.values():
                planned.insert(0, PlannedFault(FaultKind.TIME_LIMIT, share=0.01))
        run_faults = {run: RunFaults(tuple(planned)) for run, planned in plan.items()}
        study_dir, launch = self.folder / "runs" / name, partial(self.launch, name, case)
        self.drills[name] = (
            case,
            launch_with_faults(study_dir, launch, self.injector.prepare, self.watch, run_faults),
        )

    def play(self, count: int, until: float) -> list[str]:
        """Studies until `count` interruptions are planned or the time is up, then the end of all."""
        started: dict[str, float] = {}
        while True:
            active = [name for name, (_, drill) in self.drills.items() if not drill.is_done]
            if time.monotonic() > until:
                self.leave_alone()
                count = 0
            planned = sum(len(target.planned) for target in self.targets(active))
            missing = count - self.injected.total() - planned
            if missing > 0 and (runs := self.early(active)):
                self.plan_another(self.rng.choice(runs))
                continue
            if missing > 0 and len(active) < AT_ONCE:
                self.start(min(missing, FAULTS_PER_STUDY, -(-count // AT_ONCE)))
                continue
            if not active:
                return []
            for name in active:
                for target, fault in self.drills[name][1].tick():
                    self.note(target, fault, active)
                if time.monotonic() - started.setdefault(name, time.monotonic()) > STUDY_LIMIT_S:
                    queue = self.cluster.run("squeue", "-r")
                    return [f"{name} was not complete after {STUDY_LIMIT_S} s:\n{queue}"]
            time.sleep(TICK_S)

    def targets(self, names: list[str]) -> list[Target]:
        """The runs of some studies that are not scored yet."""
        drills = [self.drills[name][1] for name in names]
        runs = [(drill.study, target) for drill in drills for target in drill.targets]
        return [target for study, target in runs if not is_scored(target.run_dir, study)]

    def early(self, names: list[str]) -> list[Target]:
        """The runs that have begun, have nothing planned, and are not near their end."""
        free = [target for target in self.targets(names) if not target.planned]
        return [target for target in free if 0 < share_of(target) < EARLY]

    def plan_another(self, target: Target) -> None:
        """Plan one more interruption of a run, to come later than where it is."""
        share = self.rng.uniform(share_of(target), 0.95)
        fault = next(self.schedule)
        fixed = {Moment.ENDING: 1.0, Moment.SCORING: self.rng.uniform(0, LATEST_SHARE)}
        share = fixed.get(fault.moment, share)
        target.planned.append(msgspec.structs.replace(fault, share=share))

    def leave_alone(self) -> None:
        """Interrupt nothing from now on."""
        for _, drill in self.drills.values():
            for target in drill.targets:
                target.planned.clear()

    def note(self, target: Target, fault: InjectedFault, active: list[str]) -> None:
        """Count and tell an interruption, and remember whom it hit beside."""
        self.injected[str(fault)] += 1
        where = f"{target.run_dir.parent.name}/{target.run_dir.name} at step {fault.step}"
        print(f"{time.strftime('%H:%M:%S')} {self.injected.total()}: {where}: {fault}", flush=True)
        if fault.kind in WIDE:
            for other in self.targets(active):
                if other is not target and other.is_running:
                    note_beside(other, fault)

    # --- what must hold at the end -----------------------------------------------------------------------

    def problems(self, unbroken: Path) -> list[str]:
        """What is not as it must be."""
        problems = [f"process {pid} is left" for pid in self.cluster.left_behind()]
        problems += [f"job {line} is left" for line in self.cluster.run("squeue", "-h").splitlines()]
        for name, (case, drill) in self.drills.items():
            problems += [f"{name}: {problem}" for problem in self.problems_of(name, case, drill, unbroken)]
        if verify(self.folder / "shards") == 0:
            problems.append("the shards are empty")
        return problems

    def problems_of(self, name: str, case: Case, drill: FaultedStudy, unbroken: Path) -> list[str]:
        """What is not as it must be with one study."""
        problems = judge_study(drill.study_dir)
        for target in drill.targets:
            twin = unbroken / f"{case.name}-{target.run_dir.name}"
            problems += judge_run(target.run_dir, target.injected, twin)
            with only_holder(target.run_dir / TRAINING_LOCK_FILE) as is_free:
                problems += [] if is_free else [f"{target.run_dir.name} is locked"]
        before = read_records(drill.study_dir)
        self.launch(name, case)
        if read_records(drill.study_dir) != before:
            problems.append("launched once more, it did something again")
        return problems

    def restarts(self) -> list[Restart]:
        """All restarts of all runs whose events can be read; the others are problems."""
        restarts: list[Restart] = []
        for _, drill in self.drills.values():
            for target in drill.targets:
                with suppress(DamagedFile):
                    restarts += read_restarts(target.run_dir, target.injected)
        return restarts

    def lost(self) -> str:
        """How much was redone, in all."""
        restarts = self.restarts()
        warned = [restart for restart in restarts if restart.was_signalled]
        killed = [restart for restart in restarts if not restart.was_signalled]
        worst_s = max((restart.after.redone_s for restart in killed), default=0.0)
        every_s = max(case.checkpoint_every_s for case in CASES)
        return (
            f"steps redone: {sum(restart.lost_steps for restart in warned)} in {len(warned)} restarts after "
            f"warnings, {sum(restart.lost_steps for restart in killed)} in {len(killed)} without one, "
            f"at most {worst_s:.1f} s of training (a checkpoint every {every_s} s)"
        )


def note_beside(target: Target, fault: InjectedFault) -> None:
    """Note what was meant for another run and may have hit this one, too, at some time until now."""
    step, attempts = read_progress(target.run_dir).step, len(read_starts(target.run_dir))
    beside = {"moment": Moment.BESIDE, "step": step, "attempts": attempts, "time": time.time()}
    target.injected.append(msgspec.structs.replace(fault, **beside))


@contextmanager
def unbroken_runs(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The same runs, trained one after another on one rank each, in the background."""
    runs = [
        make_run(
            folder / "unbroken" / f"{case.name}-{variant}-s0",
            folder / "shards",
            **{**case.settings(), "variant": variant, "checkpoint_every_min": 60.0},
        )
        for case in CASES
        for variant in VARIANTS
    ]
    train = [shlex.join([sys.executable, str(REPOSITORY / "jobs" / "train.py"), str(run)]) for run in runs]
    process = subprocess.Popen(
        ["sh", "-ec", "; ".join(train)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in the jobs: the order of sums depends on it
        preexec_fn=lambda: os.nice(10),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> int:
    """Interrupt, wait for the ends, and compare; exit code 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--count", type=int, default=100, help="interruptions in all")
    parser.add_argument("--minutes", type=float, default=600, help="interrupt for so long at most")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    parser.add_argument("--no-accounting", action="store_true", help="a site without sacct")
    flags = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no cluster behind
    with tempfile.TemporaryDirectory(prefix="cxr-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        make_shards(folder / "shards")
        cluster = DevCluster(folder / "slurm", has_accounting=not flags.no_accounting)
        cluster.up()
        os.environ.update(cluster.env)
        bench = Bench(cluster, folder, flags.seed)
        try:
            with unbroken_runs(folder) as training:
                problems = bench.play(flags.count, began + 60 * flags.minutes)
                minutes = (time.monotonic() - began) / 60
                if not problems:
                    if training.wait():
                        raise SystemExit("the unbroken runs failed")
                    cluster.wait_until_idle(60)
                    problems = bench.problems(folder / "unbroken")
        finally:
            cluster.down()
        cost = bench.lost()
    for problem in problems:
        print(f"problem: {problem}")
    tell(bench, flags, minutes, cost, len(problems))
    return 1 if problems else 0


def tell(bench: Bench, flags: argparse.Namespace, minutes: float, cost: str, num_problems: int) -> None:
    """Print the summary, ready for RESULTS-interruptions.md."""
    print(f"\n`--count {flags.count} --seed {flags.seed}{' --no-accounting' if flags.no_accounting else ''}`")
    print("\n| interruption | times |\n| --- | --- |")
    for fault, times in sorted(bench.injected.items()):
        print(f"| {fault} | {times} |")
    total = bench.injected.total()
    print(f"\n{total} interruptions of {2 * len(bench.drills)} runs in {minutes:.1f} min ", end="")
    print(f"({60 * minutes / max(total, 1):.0f} s each), {bench.launches} launches; {cost}.")
    print(f"{num_problems} problems.")


if __name__ == "__main__":
    sys.exit(main())
