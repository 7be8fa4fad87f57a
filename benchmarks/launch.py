"""How long commands take to answer, where a user waits for it: `launch` before it submits, and `status`.

    python benchmarks/launch.py [--rounds 7]

Yardsticks in seconds: 1.5 for each command, 0.5 for the status of 1,000 runs, and 1.5 of CPU to launch 300
queued runs again, on a SLURM whose programs answer at once. `python -c pass` shows what Python itself takes.
Each round runs every case once, in turns. Prints the median and the slowest of each; the exit code is 1 if
one of the medians misses its yardstick.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from slurm_jobs import TRAIN
from tiny import REPOSITORY, finish, make_shards, score, write_attempts, write_lines

from data_prep.files import write_text
from data_prep.json_records import write_record
from slurm.job_records import JobRecord, add_record, read_records
from slurm.job_states import array_tasks_of
from slurm.node.environment import Backend
from vae.digests import Digests, FileDigest
from vae.metrics import StartLine, StepLine
from vae.provenance import Attempt
from vae.run_dir import DIGESTS_FILE, DONE_FILE, SCORES_FILE, WEIGHTS_FILE, checkpoint_dir, figure_path
from vae.study import Study, prepare_study

LAUNCH, STATUS = str(REPOSITORY / "jobs" / "launch.py"), str(REPOSITORY / "jobs" / "status.py")
STUDY = ["--variant", "all", "--gpus", "4", "--extractor", "smoke", "--run.batch_size", "8"]
SEEDS = ["--seeds", *map(str, range(100))]
# SLURM's programs for one who only wants to know how long ours take.
PROGRAMS = {
    "sbatch": "cat >/dev/null; id=$(($(cat {folder}/id) + 1)); echo $id | tee {folder}/id",
    "squeue": "cat {folder}/queue",
    "scontrol": "echo 'Slurmctld(primary) at here is UP'",
    "scancel": "",
    "sacct": "",
}


def cpu_s() -> float:
    """Seconds of CPU that all processes took that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Case:
    """Something a user types."""

    words: list[str]
    limit_s: float = 1.5
    exit_code: int = 0
    clock: Callable[[], float] = time.perf_counter


def cases() -> dict[str, Case]:
    """What is measured, by name."""
    dry = [LAUNCH, *STUDY, "--cluster", "slurm", "--dry-run"]
    again = [LAUNCH, *STUDY, *SEEDS, "--study", "queued", "--cluster", "slurm"]
    return {
        "python alone": Case(["-c", "pass"]),
        "launch.py --help": Case([LAUNCH, "--help"]),
        "launch.py --dry-run, 3 runs": Case(dry),
        "launch.py --dry-run, 300 runs": Case([*dry, *SEEDS]),
        "launch.py with a typing error": Case([LAUNCH, *STUDY, "--run.learning_rate", "1"], exit_code=2),
        "launch.py, 300 queued again, CPU": Case(again, clock=cpu_s),
        "status.py, 1,000 runs": Case([STATUS, "large"], limit_s=0.5),
    }


def make_programs(folder: Path) -> None:
    """SLURM's programs before all others on PATH; nothing is queued."""
    folder.mkdir()
    (folder / "id").write_text("0\n")
    (folder / "queue").write_text("")
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def make_large_study(study_dir: Path) -> None:
    """1,000 runs that have trained for as long as a real one; every other one is done and has scores."""
    names = tuple(f"linear-s{seed}" for seed in range(1000))
    prepare_study(study_dir, Study("large", names, "smoke"))
    record = JobRecord("7", TRAIN.kind, Backend.SLURM, True, tuple(range(1000)), "login", name="large-train")
    add_record(study_dir, record)
    start = StartLine(step=0, total_steps=2400, steps_per_epoch=160, time=10.0)
    losses = {
        "loss": 45000.123,
        "bce": 45000.1,
        "kl": 1.2,
        "lr": 0.001,
        "grad_norm": 3.3,
        "images_per_s": 640.1,
    }
    steps = [
        StepLine(step=step, epoch=step / 160, time=10 + step / 20, **losses) for step in range(10, 2400, 10)
    ]
    keys = ("rfid_paper", "gfid_paper", "is_reconstructions", "is_samples", "rfid_2048", "gfid_2048", "ssim")
    for number, name in enumerate(names):
        write_lines(study_dir / name, start, *steps)
        write_attempts(study_dir / name, Attempt(started_s=0.0, from_step=0))
        if number % 2:
            finish(study_dir / name)
            score(study_dir / name, scores={key: {"value": number / 7} for key in keys})
            vouch_for(study_dir / name)


def vouch_for(run_dir: Path) -> None:
    """Give a run as many files as a real one, small ones, and the digests of them all."""
    weights, scores = checkpoint_dir(run_dir, 3) / WEIGHTS_FILE, run_dir / SCORES_FILE
    pictures = [figure_path(run_dir, name) for name in ("loss", "originals", "reconstructions", "samples")]
    for path in (weights, *pictures):
        write_text(path, "")
    trained = {str(path.relative_to(run_dir)): FileDigest.of(path) for path in (run_dir / DONE_FILE, weights)}
    scored = {str(path.relative_to(run_dir)): FileDigest.of(path) for path in (scores, *pictures)}
    write_record(run_dir / DIGESTS_FILE, Digests(trained, scored))


def queue_study(folder: Path, programs: Path) -> None:
    """Launch a study of 300 runs, all of which squeue shows as queued from then on."""
    seconds(cases()["launch.py, 300 queued again, CPU"], folder)
    with (programs / "queue").open("w") as queue:
        for record in read_records(folder / "runs" / "queued"):
            jobs = array_tasks_of([record])
            queue.writelines(f"{job}|PENDING|{record.name}|Priority|N/A|(null)\n" for job in jobs)


def seconds(case: Case, folder: Path) -> float:
    """What one call takes."""
    started = case.clock()
    done = subprocess.run([sys.executable, *case.words], cwd=folder, capture_output=True, text=True)
    if done.returncode != case.exit_code:
        raise SystemExit(f"{' '.join(case.words)}: {done.stderr}")
    return case.clock() - started


def main() -> int:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder / "shards" / "tiny")
        make_programs(folder / "programs")
        make_large_study(folder / "runs" / "large")
        queue_study(folder, folder / "programs")
        times: dict[str, list[float]] = {name: [] for name in cases()}
        for _ in range(rounds):
            for name, case in cases().items():
                times[name].append(seconds(case, folder))
    print(f"{'case':34} {'median, s':>9} {'slowest, s':>10} {'yardstick, s':>12}   of {rounds} rounds")
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    for name, case in cases().items():
        print(f"{name:34} {medians[name]:9.2f} {max(times[name]):10.2f} {case.limit_s:12.1f}")
    return int(any(medians[name] > case.limit_s for name, case in cases().items()))


if __name__ == "__main__":
    sys.exit(main())
