"""Interrupt runs at random moments on a real SLURM cluster, and compare their ends with unbroken runs.

Studies of both variants are launched as a user would launch them, three at once: on one GPU per run, and on
two nodes with two ranks in double precision. Their trainings are warned, requeued, terminated, cancelled,
preempted, killed, reach a time limit or lose their node, while they start, train, save or end; what SLURM has
ended is launched again with the same command. At the end every run must be complete and like the unbroken
run: bit for bit on one rank, losses within 1e-9 on two. Nothing may be lost after a warning, else at most the
checkpoint interval; nothing may be left behind: no job, process, lock or half-written file.

    python benchmarks/interruptions.py --count 100 --seed 0
    python benchmarks/interruptions.py --minutes 3      # as many as that allows, then the end of all runs

Needs what tests/devcluster.py needs. Exit code 1 if anything is not as it must be.
"""

from __future__ import annotations

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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
sys.path.insert(0, str(REPOSITORY))

from devcluster import NODES, DevCluster, is_alive, wait_for
from tiny import TINY_FLAGS, make_run, make_shards

from data_prep.files import only_holder
from data_prep.verify import verify
from slurm.drill.drill import Drill, Target, ask_queue
from slurm.drill.faults import Blow, Hit, SlurmWays, Strike, deal, send_all
from slurm.drill.verdict import breaks, interval_s, judge_breaks, judge_end, judge_study, read_stretches
from slurm.job_records import JOBS_FILE
from vae.metrics import progress
from vae.study import read_json

VARIANTS = ("linear", "direct")
PROFILE = REPOSITORY / "tests" / "devcluster.yaml"
AT_ONCE = 3
CARDS_PER_STUDY = 15
# Up to here a run is worth another interruption.
EARLY = 0.6
TICK_S = 0.4
STUDY_LIMIT_S = 1200

SETTINGS = {"epochs": 10_000, "log_every_steps": 10}
FLAGS = ("--variant", "both", "--data", "shards", "--cluster", "slurm")

# What is dealt out, shuffled, again and again.
DECK = (
    *[Blow("warned")] * 3,
    Blow("warned", "starting"),
    Blow("warned", "saving"),
    Blow("warned", "ending"),
    *[Blow("requeued")] * 2,
    Blow("requeued", "starting"),
    Blow("terminated"),
    Blow("terminated", "saving"),
    *[Blow("cancelled")] * 2,
    *[Blow("killed")] * 2,
    Blow("killed", "ending"),
    Blow("rank killed"),
    Blow("rank killed", "starting"),
    *[Blow("rank killed", "saving")] * 2,
    Blow("preempted"),
    Blow("preempted at once"),
    Blow("node lost"),
)
# These hit every run that is training.
WIDE = ("preempted", "preempted at once", "node lost")


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


class DevWays(SlurmWays):
    """A user's ways and those of administrators, other users and broken machines."""

    def __init__(self, cluster: DevCluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng

    def aim(self, blow: Blow, job: str) -> Strike:
        """As SlurmWays; a save is over in milliseconds, so what falls into one is sent without SLURM."""
        if blow.what in ("preempted", "preempted at once"):
            return partial(self.preempt, 10 if blow.what == "preempted" else 0)
        if blow.what == "time limit":
            return partial(self.limit, job)
        if blow.what == "node lost":
            return self.lose_node
        if blow.what == "rank killed":
            ranks = self.ranks(job)
            return partial(send_all, [self.rng.choice(ranks)] if ranks else [], signal.SIGKILL)
        numbers = {"warned": signal.SIGUSR2, "terminated": signal.SIGTERM}
        if blow.when == "saving" and blow.what in numbers:
            return partial(send_all, self.ranks(job), numbers[blow.what])
        return super().aim(blow, job)

    def ranks(self, job: str) -> list[int]:
        """Processes of a job's tasks; not the srun that holds their command: TERM would let it kill them."""
        raw = self.cluster.run("squeue", "-h", "-j", job, "-o", "%A", check=False).strip()
        found = []
        for pid in self.cluster.left_behind():
            environment, command = about(pid)
            is_task = b"submitit.core._submit" in command and b"srun" not in command.split(b"\0")[0]
            if is_task and f"SLURM_JOB_ID={raw}".encode() in environment:
                found.append(pid)
        return found

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

    def lose_node(self) -> bool:
        """A node dies with everything on it, and comes back."""
        node = self.rng.choice(NODES)
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
    now = progress(target.run_dir)
    return now["step"] / max(now["total_steps"], 1)


def about(pid: int) -> tuple[list[bytes], bytes]:
    """Environment and command of a process; nothing if it has just ended."""
    try:
        process = Path(f"/proc/{pid}")
        return (process / "environ").read_bytes().split(b"\0"), (process / "cmdline").read_bytes()
    except OSError:
        return [], b""


def stop_hard(pid: int) -> None:
    """kill -9, and wait until it is gone."""
    send_all([pid], signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), 10, lambda: f"process {pid} does not end")


# --- the studies -----------------------------------------------------------------------------------------


class Bench:
    """The cluster, the studies on it, and what has been done to them."""

    def __init__(self, cluster: DevCluster, folder: Path, seed: int) -> None:
        self.cluster, self.folder = cluster, folder
        self.rng = random.Random(seed)
        self.ways = DevWays(cluster, self.rng)
        self.deck = self.cards()
        self.numbers = itertools.count()
        self.drills: dict[str, tuple[Case, Drill]] = {}
        self.done: collections.Counter[str] = collections.Counter()
        self.launches = 0

    def cards(self) -> Iterator[Blow]:
        """The deck, shuffled anew whenever it is used up."""
        while True:
            yield from self.rng.sample(DECK, len(DECK))

    def launch(self, study: str, case: Case) -> bool:
        """Launch, or launch again, one study; there must be no other answer than yes."""
        words = [*FLAGS, *TINY_FLAGS, "--study", study, "--profile", str(PROFILE)]
        words += ["--gpus", str(case.gpus), "--nodes", str(case.nodes)]
        words += [word for name, value in case.settings().items() for word in (f"--run.{name}", str(value))]
        command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words]
        asked = subprocess.run(command, cwd=self.folder, env=self.cluster.env, capture_output=True, text=True)
        if asked.returncode:
            raise SystemExit(f"launch failed: {asked.stderr}")
        self.launches += 1
        return True

    def start(self, num_cards: int) -> None:
        """Launch the next study, with so many interruptions planned."""
        number = next(self.numbers)
        case = CASES[number % len(CASES)]
        cards = list(itertools.islice(self.deck, num_cards))
        name = f"{case.name}-{number}"
        plan = deal(cards, [f"{variant}-s0" for variant in VARIANTS], self.rng)
        if case.has_limit:
            for blows in plan.values():
                blows.insert(0, Blow("time limit", share=0.01))
        drill = Drill(self.folder / "runs" / name, partial(self.launch, name, case), self.ways, plan)
        self.drills[name] = case, drill

    def play(self, count: int, until: float) -> list[str]:
        """Studies until `count` interruptions are dealt out or the time is up, then the end of all."""
        started: dict[str, float] = {}
        while True:
            active = [name for name, (_, drill) in self.drills.items() if not drill.is_done]
            if time.monotonic() > until:
                self.stop_dealing()
                count = 0
            missing = count - self.done.total() - sum(len(target.blows) for target in self.targets(active))
            if missing > 0 and (runs := self.early(active)):
                self.add_card(self.rng.choice(runs))
                continue
            if missing > 0 and len(active) < AT_ONCE:
                self.start(min(missing, CARDS_PER_STUDY, -(-count // AT_ONCE)))
                continue
            if not active:
                return []
            scheduler = ask_queue()
            for name in active:
                for target, hit in self.drills[name][1].tick(scheduler):
                    self.note(target, hit, active)
                if time.monotonic() - started.setdefault(name, time.monotonic()) > STUDY_LIMIT_S:
                    queue = self.cluster.run("squeue", "-r")
                    return [f"{name} was not complete after {STUDY_LIMIT_S} s:\n{queue}"]
            time.sleep(TICK_S)

    def targets(self, names: list[str]) -> list[Target]:
        """The runs of some studies that are not trained yet."""
        return [target for name in names for target in self.drills[name][1].targets if not target.is_trained]

    def early(self, names: list[str]) -> list[Target]:
        """The runs that have begun, have nothing planned, and are not near their end."""
        found = [target for target in self.targets(names) if not target.blows]
        return [target for target in found if 0 < share_of(target) < EARLY]

    def add_card(self, target: Target) -> None:
        """Plan one more interruption of a run, to come later than where it is."""
        share = self.rng.uniform(share_of(target), 0.95)
        card = next(self.deck)
        target.blows.append(replace(card, share=1.0 if card.when == "ending" else share))

    def stop_dealing(self) -> None:
        """Leave all runs alone from now on."""
        for _, drill in self.drills.values():
            for target in drill.targets:
                target.blows.clear()

    def note(self, target: Target, hit: Hit, active: list[str]) -> None:
        """Count and tell an interruption, and remember whom it hit beside."""
        self.done[f"{hit.what} while {hit.when}"] += 1
        where = f"{target.run_dir.parent.name}/{target.run_dir.name} at step {hit.step}"
        print(
            f"{time.strftime('%H:%M:%S')} {self.done.total()}: {where}: {hit.what} while {hit.when}",
            flush=True,
        )
        if hit.what in WIDE:
            for other in self.targets(active):
                if other is not target and other.is_running:
                    other.add_beside(hit)

    # --- what must hold at the end -----------------------------------------------------------------------

    def problems(self, unbroken: Path) -> list[str]:
        """What is not as it must be."""
        found = [f"process {pid} is left" for pid in self.cluster.left_behind()]
        found += [f"job {line} is left" for line in self.cluster.run("squeue", "-h").splitlines()]
        for name, (case, drill) in self.drills.items():
            told = judge_study(drill.study_dir)
            for target in drill.targets:
                told += judge_end(target.run_dir, unbroken / f"{case.name}-{target.run_dir.name}")
                between = breaks(read_stretches(target.run_dir), target.hits)
                told += judge_breaks(target.run_dir.name, between, interval_s(target.run_dir))
                with only_holder(target.run_dir / ".training") as is_free:
                    told += [] if is_free else [f"{target.run_dir.name} is locked"]
            before = read_json(drill.study_dir / JOBS_FILE)
            self.launch(name, case)
            if read_json(drill.study_dir / JOBS_FILE) != before:
                told.append("launched once more, it did something again")
            found += [f"{name}: {problem}" for problem in told]
        if verify(self.folder / "shards") == 0:
            found.append("the shards are empty")
        return found

    def lost(self) -> str:
        """How much was redone, in all."""
        found = [
            one
            for _, drill in self.drills.values()
            for target in drill.targets
            for one in breaks(read_stretches(target.run_dir), target.hits)
        ]
        warned, killed = ([one for one in found if one.was_signalled is kind] for kind in (True, False))
        worst = max((one.lost_s for one in killed), default=0.0)
        return (
            f"steps redone: {sum(one.lost_steps for one in warned)} in {len(warned)} restarts after warnings,"
            f" {sum(one.lost_steps for one in killed)} in {len(killed)} without one, at most {worst:.1f} s "
            f"of training (a checkpoint every {max(case.checkpoint_every_s for case in CASES)} s)"
        )


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
    """Deal out interruptions, wait for the ends, and evaluator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--count", type=int, default=100, help="interruptions in all")
    parser.add_argument(
        "--minutes", type=float, default=600, help="deal out interruptions for so long at most"
    )
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
    for way, times in sorted(bench.done.items()):
        print(f"| {way} | {times} |")
    total = bench.done.total()
    print(f"\n{total} interruptions of {2 * len(bench.drills)} runs in {minutes:.1f} min ", end="")
    print(f"({60 * minutes / max(total, 1):.0f} s each), {bench.launches} launches; {cost}.")
    print(f"{num_problems} problems.")


if __name__ == "__main__":
    sys.exit(main())
