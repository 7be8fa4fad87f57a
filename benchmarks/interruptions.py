"""Interrupt runs at random moments on a real SLURM cluster, and compare their ends with unbroken runs.

Round after round a study of both variants is launched twice: on one GPU per run, and on two nodes with two
ranks in double precision. Random running jobs are then warned, requeued, preempted, cancelled, killed, or
lose their node; what SLURM has ended is launched again with the same command. At the end of each round every
run must be complete, with weights bit-identical to the unbroken run's (one rank) or losses within 1e-9 (two
ranks), and nothing may be left behind: no job, no process, no half-written file.

    python benchmarks/interruptions.py --count 100 --seed 0

Needs what tests/devcluster.py needs. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
sys.path.insert(0, str(REPOSITORY))

import torch
from devcluster import NODES, DevCluster, is_alive, wait_for
from tiny import make_run, make_shards

from data_prep.shards import verify
from vae.checkpoint import find_latest, load_weights
from vae.study import is_scored, is_trained, read_json, read_metrics, read_study
from vae.trainer import train

VARIANTS = ("linear", "direct")
ROUND_LIMIT_S = 900
# Long enough to be hit many times, short enough for a round in a few minutes. A save every second or so means
# that many interruptions fall into one.
SETTINGS = {"epochs": 10_000, "max_steps": 4_000, "log_every_steps": 50, "checkpoint_every_min": 0.02}
COMMON = ("--variant", "both", "--data", "shards", "--extractor", "smoke")
TINY_FLAGS = (
    "--run.widths",
    "[4,8,8,16]",
    "--run.latent_dim",
    "8",
    "--run.batch_size",
    "8",
    "--run.trackers",
    "[]",
)


@dataclass(frozen=True)
class Case:
    """One study of a round: where its runs run, and how exactly they must end like unbroken ones."""

    name: str
    gpus: int
    nodes: int
    precision: str


CASES = (Case("one", 1, 1, "fp32"), Case("two", 2, 2, "fp64"))


@dataclass
class Drill:
    """The cluster, the studies on it, and what has been done to them."""

    cluster: DevCluster
    folder: Path
    rng: random.Random
    done: collections.Counter[str] = field(default_factory=collections.Counter)

    # --- studies -------------------------------------------------------------------------------

    def launch(self, case: Case, number: int) -> None:
        """Launch, or launch again, the study of a case; there must be no other answer than yes."""
        words = [
            *COMMON,
            *TINY_FLAGS,
            "--gpus",
            str(case.gpus),
            "--nodes",
            str(case.nodes),
            "--seeds",
            str(number),
        ]
        words += [
            "--study",
            f"{case.name}-{number}",
            "--profile",
            str(REPOSITORY / "tests" / "devcluster.yaml"),
        ]
        words += ["--run.precision", case.precision, "--cluster", "slurm"]
        words += [word for name, value in SETTINGS.items() for word in (f"--run.{name}", str(value))]
        command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words]
        asked = subprocess.run(command, cwd=self.folder, env=self.cluster.env, capture_output=True, text=True)
        if asked.returncode:
            raise SystemExit(f"launch failed: {asked.stderr}")

    def runs(self, case: Case, number: int) -> list[Path]:
        study_dir = self.folder / "runs" / f"{case.name}-{number}"
        return [study_dir / name for name in read_study(study_dir).runs]

    def is_complete(self, case: Case, number: int) -> bool:
        """Every run is trained and scored and the report is there."""
        runs = self.runs(case, number)
        study = read_study(runs[0].parent)
        return all(is_trained(run) and is_scored(run, study) for run in runs) and (
            (runs[0].parent / "report.html").exists()
        )

    # --- interruptions -------------------------------------------------------------------------

    def running(self) -> list[str]:
        """Ids of the running jobs and array elements."""
        return self.cluster.run("squeue", "-rh", "-t", "R", "-o", "%i").split()

    def ranks(self, job: str = "") -> list[int]:
        """Processes of running tasks, of one job if named."""
        raw = self.cluster.run("squeue", "-h", "-j", job, "-o", "%A").strip() if job else ""
        found = []
        for pid in self.cluster.left_behind():
            try:
                process = Path(f"/proc/{pid}")
                environment = (process / "environ").read_bytes().split(b"\0")
                is_task = b"submitit.core._submit" in (process / "cmdline").read_bytes()
            except OSError:
                continue
            if is_task and (not job or f"SLURM_JOB_ID={raw}".encode() in environment):
                found.append(pid)
        return found

    def interrupt(self) -> str:
        """Do one random bad thing to one random running job; returns what, or nothing if none runs."""
        running = self.running()
        if not running:
            return ""
        job = self.rng.choice(sorted(running))
        ways: dict[str, Callable[[str], bool]] = {
            "warned": lambda job: self.slurm("scancel", "--signal=USR2", job),
            "requeued": lambda job: self.slurm("scontrol", "requeue", job),
            "cancelled": lambda job: self.slurm("scancel", job),
            "terminated": lambda job: self.slurm("scancel", "--signal=TERM", job),
            "rank killed": self.kill_rank,
            "preempted": self.preempt,
            "node lost": self.lose_node,
        }
        way = self.rng.choices(list(ways), weights=[5, 4, 2, 2, 4, 2, 1])[0]
        if not ways[way](job):
            return ""
        self.done[way] += 1
        return f"{job} {way}"

    def slurm(self, *command: str) -> bool:
        """Run a SLURM command; False if the job had just ended."""
        return self.cluster.succeeds(*command)

    def kill_rank(self, job: str) -> bool:
        """kill -9 of one rank, as the out-of-memory killer does."""
        ranks = self.ranks(job)
        if not ranks:
            return False
        try:
            os.kill(self.rng.choice(ranks), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def preempt(self, _: str) -> bool:
        """A job in the urgent partition takes both nodes whole: every running job is warned and requeued."""
        script = "#!/bin/sh\nsleep 1\n"
        flags = [
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            "--time=1",
            "--output=/dev/null",
            "--job-name=urgent",
        ]
        asked = subprocess.run(
            ["sbatch", *flags],
            input=script,
            env=self.cluster.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.returncode == 0

    def lose_node(self, _: str) -> bool:
        """A node dies with everything on it, and comes back."""
        node = self.rng.choice(NODES)
        name = f"SLURMD_NODENAME={node}".encode()
        stop_hard(self.cluster.pids[f"slurmd-{node}"])
        for pid in self.cluster.left_behind():
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if name in words or node.encode() in command:
                stop_hard(pid)
        time.sleep(self.rng.uniform(0.5, 3))
        self.cluster.start(f"slurmd-{node}", ["slurmd", "-D", "-N", node])
        return True

    # --- a round -------------------------------------------------------------------------------

    def play(self, number: int, wanted: int) -> list[str]:
        """One round with at most `wanted` interruptions; returns what was not as it must be."""
        for case in CASES:
            self.launch(case, number)
        give_up = time.monotonic() + ROUND_LIMIT_S
        quota = wanted
        while not all(self.is_complete(case, number) for case in CASES):
            if time.monotonic() > give_up:
                queue = self.cluster.run("squeue", "-r")
                return [f"round {number} was not complete after {ROUND_LIMIT_S} s:\n{queue}"]
            time.sleep(self.rng.uniform(0.5, 8))
            if quota and (what := self.interrupt()):
                quota -= 1
                clock = time.strftime("%H:%M:%S")
                print(f"{clock} {sum(self.done.values())}: {what}", flush=True)
                time.sleep(self.rng.uniform(0, 2))
            for case in CASES:  # launching again is harmless, and needed where SLURM has ended a job for good
                self.launch(case, number)
        self.cluster.wait_until_idle(120)
        return [problem for case in CASES for problem in self.problems(case, number)] + self.left_behind(
            number
        )

    def problems(self, case: Case, number: int) -> list[str]:
        """Where the runs of a case do not end like unbroken ones."""
        found = []
        for run_dir in self.runs(case, number):
            variant = run_dir.name.split("-")[0]
            unbroken = self.unbroken(case, variant, number)
            left, right = (read_metrics(path) for path in (run_dir, unbroken))
            steps, expected = (
                {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
                for lines in (left, right)
            )
            if steps.keys() != expected.keys():
                found.append(f"{run_dir}: logged {len(steps)} steps, the unbroken run {len(expected)}")
                continue
            worst = max(abs(steps[step] / expected[step] - 1) for step in expected)
            if worst > (0.0 if case.gpus == 1 else 1e-9):
                found.append(f"{run_dir}: losses differ by {worst:.3g}")
            if case.gpus == 1 and not same_weights(run_dir, unbroken):
                found.append(f"{run_dir}: weights differ")
        return found

    def unbroken(self, case: Case, variant: str, number: int) -> Path:
        """The same run, trained here in one go on one rank."""
        run_dir = self.folder / "unbroken" / f"{case.name}-{variant}-{number}"
        if not is_trained(run_dir):
            options = {**SETTINGS, "variant": variant, "seed": number, "precision": case.precision}
            train(make_run(run_dir, self.folder / "shards", **{**options, "checkpoint_every_min": 60.0}))
        return run_dir

    def left_behind(self, number: int) -> list[str]:
        """Processes and files that should not be there any more."""
        found = [f"process {pid} is left" for pid in self.cluster.left_behind()]
        for case in CASES:
            for run_dir in self.runs(case, number):
                stray = [
                    *run_dir.glob("**/*.part"),
                    *run_dir.glob(".rendezvous*"),
                    *run_dir.glob("**/*.save_tmp"),
                ]
                found += [f"{path} is left" for path in stray]
        if verify(self.folder / "shards") == 0:
            found.append("the shards are empty")
        return found


def same_weights(run_dir: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    latest = [find_latest(path) for path in (run_dir, other)]
    left, right = (load_weights(path) for path in latest if path is not None)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def stop_hard(pid: int) -> None:
    """kill -9, and wait until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for(lambda: not is_alive(pid), 10, lambda: f"process {pid} does not end")


def attempts_of(folder: Path) -> int:
    """Attempts that all runs took together."""
    found = [read_json(path) or {} for path in folder.glob("runs/*/*/provenance.json")]
    return sum(len(one.get("attempts", [])) for one in found)


def main() -> int:
    """Play rounds until enough interruptions have been dealt out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="interruptions in all")
    parser.add_argument("--per-round", type=int, default=20, help="interruptions of one round at most")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    parser.add_argument("--no-accounting", action="store_true", help="a site without sacct")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # as in the jobs: the order of sums depends on it
    started, problems, rounds = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(prefix="cxr-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        make_shards(folder / "shards")
        cluster = DevCluster(folder / "slurm", has_accounting=not flags.no_accounting)
        cluster.up()
        drill = Drill(cluster, folder, random.Random(flags.seed))
        try:
            while sum(drill.done.values()) < flags.count and not problems:
                left = flags.count - sum(drill.done.values())
                problems += drill.play(rounds, min(flags.per_round, left))
                rounds += 1
        finally:
            cluster.down()
        attempts = attempts_of(folder)
    for problem in problems:
        print(f"problem: {problem}")
    kinds = ", ".join(f"{count} {way}" for way, count in sorted(drill.done.items()))
    print(f"{sum(drill.done.values())} interruptions ({kinds})")
    print(f"{rounds} rounds of 4 runs, {attempts} attempts, {(time.monotonic() - started) / 60:.1f} min")
    print(f"seed {flags.seed}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
