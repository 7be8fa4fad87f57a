"""Prove on this very cluster that interruptions change nothing.

A tiny study is launched twice, with the command that real studies use. One of the two is interrupted at
random steps in every way the site allows to an ordinary user: warned as before a time limit, requeued,
terminated, cancelled and launched again, killed without a warning; while it starts, trains, saves and ends.
Then the two must be the same: bit for bit on one CPU rank, else with losses that differ by at most 1e-9 of
their value in double precision. A warning may cost no step, a kill only those since the last checkpoint.

Nothing is needed but sbatch, squeue, scancel and scontrol. Many clusters hold a requeued job for two minutes,
so this takes a while. Exit code 0: all held; 1: something did not; 2: a mistake in the command. Ctrl-C stops
the jobs; the same command then goes on. When it is over, the folders may be deleted.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import _front
from _data import safe_name

from data_prep import pack_plan, packer
from data_prep.errors import ClusterError, SettingsError
from data_prep.files import write_json
from data_prep.shards import MANIFEST_FILE
from slurm.client import require_slurm
from slurm.control import cancel
from slurm.drill.drill import Drill, ask_queue
from slurm.drill.faults import LOCAL_DECK, SLURM_DECK, Blow, Hit, LocalWays, SlurmWays, deal, shuffled
from slurm.drill.verdict import (
    TOLERANCE,
    breaks,
    describe,
    interval_s,
    judge_breaks,
    judge_end,
    judge_study,
    must_be_exact,
    read_stretches,
)
from slurm.job_records import read_jobs
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from slurm.plan import Resources
from slurm.scheduler import QUEUED, RUNNING, Scheduler, newest_job
from slurm.submit import choose_backend
from vae.config import VARIANT_GROUPS
from vae.metrics import read_progress
from vae.run_dir import STUDY_FILE
from vae.study import run_name

EXAMPLES = """\
  python jobs/drill.py --profile mysite                        # ten interruptions on your cluster
  python jobs/drill.py --profile mysite --gpus 2 --nodes 2     # of runs on two nodes
  python jobs/drill.py --cluster local --count 4               # with processes of this machine
  python jobs/drill.py --profile mysite --seed 1               # once more, in another order
"""

# Quick on anything: what is tested is the cluster.
IMAGE_PX = 32
SETTINGS = {
    "widths": "[4,8,8,16]",
    "latent_dim": "8",
    "trackers": "[]",
    "epochs": "1000000",
    "log_every_steps": "5",
    "precision": "fp64",
    "checkpoint_every_min": "0.05",
}
# Many more than a run makes between two looks, which is about 300 a second on a fast machine.
STEPS_PER_INTERRUPTION = {Backend.SLURM: 2000, Backend.LOCAL: 500}
PLAN_FILE = "drill.json"
# squeue is asked this often; once a second would annoy the people who run a cluster.
TICK_S = 2.0
TICK_LOCAL_S = 0.3
TELL_EVERY_S = 30.0

log = logging.getLogger(__name__)


def build_parser() -> _front.Parser:
    """A few flags; everything else is as in `launch`."""
    parser = _front.Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--profile", default="", metavar="NAME", help="slurm/profiles/NAME.yaml, or a YAML file: your cluster"
    )
    add("--variant", choices=tuple(VARIANT_GROUPS), default="both", help="which runs to interrupt")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of each run, over all its nodes together")
    add("--nodes", type=int, default=1, metavar="N", help="nodes of each run")
    add("--data", default="phantom:96", metavar="SHARDS|phantom:N", help="packed images, or made-up ones")
    add("--count", type=int, default=10, metavar="K", help="interruptions in all")
    add("--seed", type=int, default=0, metavar="S", help="of what happens when; names the study, too")
    add("--cluster", choices=("auto", "slurm", "local"), default="auto", help="as in launch")
    add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where the two studies are kept")
    return parser


# --- launching ----------------------------------------------------------------------------------------


class Launcher:
    """Runs `launch` for one study, as a user would; on this machine it stays in the background."""

    def __init__(self, words: list[str], study_dir: Path, is_local: bool) -> None:
        script = str(Path(__file__).with_name("launch.py"))
        self.command = [sys.executable, script, "--study", study_dir.name, *words]
        self.study_dir, self.is_local = study_dir, is_local
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> bool:
        """Launch, unless that is going on already (False).

        Raises:
            ClusterError: launch's own words on why it does not.
        """
        if self.pid is not None:
            return False
        output = self.study_dir.parent / f"{self.study_dir.name}.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as file:
            begins = file.tell()
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file, start_new_session=True)
        while self.pid is not None and not (self.is_local and (self.study_dir / STUDY_FILE).exists()):
            time.sleep(0.1)
        if self.process.returncode and not (self.study_dir / STUDY_FILE).exists():
            raise refusal(output.read_text(errors="replace")[begins:])
        return True

    @property
    def pid(self) -> int | None:
        """The launch command that is at work, if any."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None


def refusal(text: str) -> ClusterError:
    """The error that `launch` has told of."""
    found = dict(re.findall(r"^(error|hint): (.*)$", text, re.M))
    return ClusterError(f"launch: {found.get('error', text[-300:].strip())}", found.get("hint"))


def launch_words(asked: argparse.Namespace, cluster: Backend, data: Path) -> list[str]:
    """The flags of both launches, which differ in --study alone."""
    runs = len(VARIANT_GROUPS[asked.variant])
    steps = STEPS_PER_INTERRUPTION[cluster] * (1 + -(-asked.count // runs))
    settings = {**SETTINGS, "max_steps": str(steps), "batch_size": str(max(8, asked.gpus))}
    words = ["--variant", asked.variant, "--gpus", str(asked.gpus), "--nodes", str(asked.nodes)]
    words += [
        "--data",
        str(data),
        "--extractor",
        "smoke",
        "--cluster",
        str(cluster),
        "--runs-dir",
        str(asked.runs_dir),
    ]
    words += ["--profile", asked.profile] if asked.profile else []
    return words + [word for name, value in settings.items() for word in (f"--run.{name}", value)]


def prepare_data(asked: str, runs_dir: Path) -> Path:
    """Packed images: the user's, or made-up ones that are packed here, which takes seconds.

    Raises:
        SettingsError: neither.
    """
    if not asked.startswith("phantom:"):
        if not (Path(asked) / MANIFEST_FILE).exists():
            raise SettingsError(f"--data {asked}: no packed images there", "give packed ones, or phantom:96")
        return Path(asked)
    out = (runs_dir / "drill-shards" / safe_name(asked)).resolve()
    if not (out / MANIFEST_FILE).exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        pack_plan.plan(asked, out, pack_plan.PackOptions(size_px=IMAGE_PX))
        packer.pack_part(out, 0, 1, workers=1)
        packer.finalize(out)
    return out


# --- the drill -----------------------------------------------------------------------------------------


class Session:
    """The two studies, side by side, and what is remembered of them between two commands."""

    def __init__(self, asked: argparse.Namespace, cluster: Backend, words: list[str]) -> None:
        runs_dir = asked.runs_dir.resolve()
        self.is_local = cluster is Backend.LOCAL
        self.launchers = [
            Launcher(words, runs_dir / f"drill-{asked.seed}{end}", self.is_local) for end in ("", "-unbroken")
        ]
        folder, unbroken = (launcher.study_dir for launcher in self.launchers)
        self.plan_path = folder / PLAN_FILE
        known = json.loads(self.plan_path.read_text()) if self.plan_path.exists() else {}
        runs = [run_name(variant, 0) for variant in VARIANT_GROUPS[asked.variant]]
        plan = {run: [Blow(**blow) for blow in known.get(run, {}).get("blows", ())] for run in runs}
        if not known:
            rng = random.Random(asked.seed)
            plan = deal(shuffled(LOCAL_DECK if self.is_local else SLURM_DECK, asked.count, rng), runs, rng)
        ways = LocalWays(lambda: self.launchers[0].pid) if self.is_local else SlurmWays()
        self.twin = Drill(unbroken, self.launchers[1], SlurmWays(), {})
        self.drill = Drill(folder, self.launchers[0], ways, plan)
        for target in self.drill.targets:
            target.hits = [Hit(**hit) for hit in known.get(target.run_dir.name, {}).get("hits", ())]
        self.remember()

    def remember(self) -> None:
        """Write down what is still to be done and what was done, for the same command later."""
        told = {
            target.run_dir.name: {
                "blows": [asdict(blow) for blow in target.blows],
                "hits": [asdict(hit) for hit in target.hits],
            }
            for target in self.drill.targets
        }
        write_json(self.plan_path, told)

    def play(self) -> None:
        """Interrupt and launch until both studies are done and nothing of them is queued or running."""
        told_s = time.monotonic()
        while not (self.drill.is_done and self.twin.is_done) or self.is_busy():
            scheduler = Scheduler({}, {}) if self.is_local else ask_queue()
            self.twin.tick(scheduler)
            for target, hit in self.drill.tick(scheduler):
                log.info("%s: %s while %s, at step %d", target.run_dir.name, hit.what, hit.when, hit.step)
                self.remember()
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                log.info("%s", "; ".join(self.where(scheduler)))
            time.sleep(TICK_LOCAL_S if self.is_local else TICK_S)

    def is_busy(self) -> bool:
        """Whether anything of the two studies is queued or running."""
        scheduler = Scheduler({}, {}) if self.is_local else ask_queue()
        return any(launcher.pid for launcher in self.launchers) or any(
            scheduler.state(record, index)[0] in (*RUNNING, *QUEUED, "UNKNOWN")
            for drill in (self.drill, self.twin)
            for record in read_jobs(drill.study_dir, drill.study)
            for index in record.indices
        )

    def where(self, scheduler: Scheduler) -> list[str]:
        """How far each run is, and what it waits for."""
        lines = []
        for drill in (self.drill, self.twin):
            records = read_jobs(drill.study_dir, drill.study)
            for target in drill.targets:
                now = read_progress(target.run_dir)
                record = newest_job(JobKind.TRAIN, target.index, records, scheduler)
                state, reason = scheduler.state(record, target.index) if record else ("", "")
                waits = f" ({reason or state})" if state == "PENDING" else ""
                told = "trained" if target.is_trained else f"step {now.step} of {now.total_steps}{waits}"
                lines.append(f"{drill.study_dir.name}/{target.run_dir.name} {told}")
        return lines

    def stop(self) -> None:
        """Cancel whatever is queued or running of both studies."""
        for drill in (self.drill, self.twin):
            for line in cancel(drill.study_dir, drill.study):
                log.info("%s", line)

    def tell(self) -> list[str]:
        """Print a line for each interruption; returns what is not as it must be."""
        problems = judge_study(self.drill.study_dir)
        for target in self.drill.targets:
            name, found = target.run_dir.name, breaks(read_stretches(target.run_dir), target.hits)
            for hit in target.hits:
                print(f"{name}: {describe(hit, found)}")
            for blow in target.blows:
                print(f"{name}: {blow.what} while {blow.when}: the run was done before")
            problems += judge_breaks(name, found, interval_s(target.run_dir))
            problems += judge_end(target.run_dir, self.twin.study_dir / name)
        for what, words in self.drill.refused.items():
            print(f"{what}: left out, for this site does not allow it: {words}")
        return problems

    def verdict(self, problems: list[str]) -> str:
        """The last word."""
        hits = sum(len(target.hits) for target in self.drill.targets)
        if problems:
            return (
                f"The drill failed: {len(problems)} of the promises did not hold after {hits} interruptions."
            )
        is_exact = all(must_be_exact(target.run_dir) for target in self.drill.targets)
        how = "bit for bit" if is_exact else f"losses within {TOLERANCE} of their value"
        tried = ", ".join(sorted({hit.what for target in self.drill.targets for hit in target.hits}))
        return (
            f"The drill passed: {hits} interruptions ({tried}) changed nothing ({how}), "
            "and no warning cost a step."
        )


def main() -> int:
    """Launch, interrupt, compare."""
    asked = build_parser().parse_args()
    if asked.count < 1:
        raise SettingsError(f"--count {asked.count}; allowed: at least 1")
    Resources(asked.gpus, asked.nodes)
    if asked.seed < 0:
        raise SettingsError(f"--seed {asked.seed}; allowed: 0 or more")
    cluster = choose_backend(asked.cluster, bool(asked.profile))
    if cluster is Backend.SLURM:
        require_slurm()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = launch_words(asked, cluster, prepare_data(asked.data, asked.runs_dir))
    session = Session(asked, cluster, words)
    log.info("%s", expectation(asked, cluster))
    try:
        session.play()
    except BaseException:
        session.stop()
        raise
    problems = session.tell()
    for problem in problems:
        print(f"problem: {problem}")
    print(session.verdict(problems))
    return 1 if problems else 0


def expectation(asked: argparse.Namespace, cluster: Backend) -> str:
    """How long this is going to take."""
    each = -(-asked.count // len(VARIANT_GROUPS[asked.variant]))
    if cluster is Backend.LOCAL:
        return f"{asked.count} interruptions on this machine: about {1 + asked.count // 3} minutes"
    return (
        f"{asked.count} interruptions, {each} of each run: {2 + each} to {3 + 3 * each} minutes where jobs "
        "start at once (many clusters hold a requeued job for two minutes), longer where there is a queue"
    )


if __name__ == "__main__":
    _front.run(main)
