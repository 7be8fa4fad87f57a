"""A drill from its options to its verdict: the study that gets faults, and its unbroken twin."""

import logging
import random
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data_prep.errors import ClusterError, DamagedFile
from data_prep.json_records import Record, read_record, write_record
from slurm.cancel_throttle import cancel
from slurm.client import QueueWatch
from slurm.drill import faults, verdict
from slurm.drill.faulted_study import FaultedStudy, launch_with_faults
from slurm.drill.faults import RunFaults
from slurm.drill.options import DrillOptions
from slurm.node.environment import Backend
from slurm.study_state import states_of
from vae.run_dir import DRILL_FILE, STUDY_FILE
from vae.study import read_study

# How often the files of the runs are looked at; squeue is asked as rarely as its watch wants it.
TICK_S = 0.3
LOG_EVERY_S = 30.0

log = logging.getLogger(__name__)


class Launcher:
    """Runs `launch` for one study, as a user would; on this machine it stays in the background."""

    def __init__(self, command: Sequence[str], study_dir: Path, options: DrillOptions) -> None:
        self.command = [*command, *options.launch_flags(), f"--study={study_dir.name}"]
        self.output = study_dir.with_name(f"{study_dir.name}.log")
        self.study_file = study_dir / STUDY_FILE
        self.is_local = options.backend is Backend.LOCAL
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> bool:
        """Launch, unless that is going on already (False); a ClusterError has launch's own words."""
        if self.pid() is not None:
            return False
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as file:
            begins = file.tell()
            self._process = subprocess.Popen(self.command, stdout=file, stderr=file, start_new_session=True)
        while self.pid() is not None and not (self.is_local and self.study_file.exists()):
            time.sleep(0.1)
        if self._process.returncode and not self.study_file.exists():
            text = self.output.read_bytes()[begins:].decode(errors="replace")
            lines = dict(re.findall(r"^(error|hint): (.*)$", text, re.M))
            raise ClusterError(f"launch: {lines.get('error', text[-300:].strip())}", lines.get("hint"))
        return True

    def pid(self) -> int | None:
        """The launch command that is at work, if any."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None


class DrillRecord(Record, frozen=True):
    """drill.json: the faults of each run, with which the same command goes on later."""

    IF_DAMAGED = "remove the folders of the drill's two studies: it begins anew"

    runs: dict[str, RunFaults]


def read_plan(options: DrillOptions) -> dict[str, RunFaults]:
    """The faults of each run: as an earlier command has left them, or planned anew from the seed."""
    if record := read_record(options.study_dir / DRILL_FILE, DrillRecord):
        return record.runs
    rng = random.Random(options.seed)
    mix = faults.LOCAL_FAULTS if options.backend is Backend.LOCAL else faults.SLURM_FAULTS
    plan = faults.assign(faults.schedule(mix, options.count, rng), options.runs, rng)
    return {run: RunFaults(tuple(planned)) for run, planned in plan.items()}


def begin_drill(options: DrillOptions, launch_command: Sequence[str]) -> "Drill":
    """Plan the faults, or read what is left of them, and launch both studies; raises as both do."""
    plan, is_local = read_plan(options), options.backend is Backend.LOCAL
    watch = QueueWatch(ask=tuple) if is_local else QueueWatch()  # here, nothing is ever queued
    launcher = Launcher(launch_command, options.study_dir, options)
    twin_launcher = Launcher(launch_command, options.unbroken_dir, options)
    prepare = faults.here(launcher.pid) if is_local else faults.on_slurm
    twin = launch_with_faults(options.unbroken_dir, twin_launcher.launch, prepare, watch, {})
    faulted = launch_with_faults(options.study_dir, launcher.launch, prepare, watch, plan)
    drill = Drill(faulted, twin, (launcher, twin_launcher))
    drill.remember()
    return drill


def stop_drill(options: DrillOptions) -> None:
    """Cancel whatever is queued or running of both studies."""
    for study_dir in (options.study_dir, options.unbroken_dir):
        if (study_dir / STUDY_FILE).exists():
            for line in cancel(study_dir, read_study(study_dir)):
                log.info("%s", line)


@dataclass(frozen=True)
class Drill:
    """The two studies, side by side; the same command goes on where an earlier one has stopped."""

    faulted: FaultedStudy
    twin: FaultedStudy
    launchers: tuple[Launcher, Launcher]

    def remember(self) -> None:
        """Write down what is still to be done and what was done, for the same command later."""
        runs = {target.run_dir.name: target.faults() for target in self.faulted.targets}
        write_record(self.faulted.study_dir / DRILL_FILE, DrillRecord(runs))

    def play(self) -> None:
        """Inject and launch until both studies are done and nothing of them is queued or running."""
        logged_s = time.monotonic()
        while not (self.faulted.is_done and self.twin.is_done) or self.is_busy():
            self.twin.tick()
            for target, fault in self.faulted.tick():
                log.info("%s: %s, at step %d", target.run_dir.name, fault, fault.step)
                self.remember()
            if time.monotonic() - logged_s > LOG_EVERY_S:
                logged_s = time.monotonic()
                log.info("%s", "; ".join([*positions(self.faulted), *positions(self.twin)]))
            time.sleep(TICK_S)

    def is_busy(self) -> bool:
        is_launching = any(launcher.pid() for launcher in self.launchers)
        return is_launching or self.faulted.is_busy() or self.twin.is_busy()

    def lines(self) -> list[str]:
        """A line for each fault: what it cost, or why there was none; damage is told as a problem."""
        lines = []
        for target in self.faulted.targets:
            name = target.run_dir.name
            with suppress(DamagedFile):
                restarts = verdict.read_restarts(target.run_dir, target.injected)
                lines += [f"{name}: {verdict.describe(fault, restarts)}" for fault in target.injected]
            lines += [f"{name}: {fault}: the run was done before" for fault in target.planned]
        refused = self.faulted.refused.items()
        return lines + [f"{kind}: left out, for this site does not allow it: {why}" for kind, why in refused]

    def problems(self) -> list[str]:
        problems = verdict.judge_study(self.faulted.study_dir)
        for target in self.faulted.targets:
            unbroken = self.twin.study_dir / target.run_dir.name
            problems += verdict.judge_run(target.run_dir, target.injected, unbroken)
        return problems

    def summary(self, problems: Sequence[str]) -> str:
        """Whether the drill passed, in one sentence."""
        injected = list(chain.from_iterable(target.injected for target in self.faulted.targets))
        count, failed = len(injected), len(problems)
        if failed:
            return f"The drill failed: {failed} of the promises did not hold after {count} interruptions."
        is_exact = all(verdict.must_be_exact(target.run_dir) for target in self.faulted.targets)
        how = "bit for bit" if is_exact else f"losses within {verdict.TOLERANCE} of their value"
        kinds = ", ".join(sorted({fault.kind for fault in injected}))
        outcome = f"{count} interruptions ({kinds}) changed nothing ({how})"
        return f"The drill passed: {outcome}, and no warning cost a step."


def positions(faulted: FaultedStudy) -> list[str]:
    """How far each run is, and what it waits for."""
    lines = []
    for status in states_of(faulted.study_dir, faulted.study, *faulted.jobs()):
        steps = f"step {status.progress.step} of {status.progress.total_steps}"
        detail = f" ({status.detail})" if status.detail else ""
        lines.append(f"{faulted.study_dir.name}/{status.name} {status.state}{detail}, {steps}")
    return lines
