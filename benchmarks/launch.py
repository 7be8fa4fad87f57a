"""How long commands take where a user waits: `launch` until it has submitted or trains, and `status`.

    python benchmarks/launch.py [--rounds 5] [--plot FILE.svg]

Yardsticks in seconds: 6 from `launch` on this machine to the first optimiser step of the study's `linear`
(256 px, batches of 32), 3 to submit 300 new runs to a SLURM whose programs answer at once, 1.5 of CPU to
launch them again, 0.6 for `--help` and `--dry-run`, 0.5 for the status of 1,000 runs. `python -c pass` shows
what Python itself takes, and `imports` what a training process must load. Each round runs every case once, in
turns, after one that does not count. Prints the median and the slowest of each; the exit code is 1 if a
median misses its yardstick.
"""

import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import side_by_side
from slurm_jobs import TRAIN
from tiny import REPOSITORY, finish, make_shards, score, write_attempts, write_lines

from data_prep.files import write_text
from data_prep.json_records import write_record
from slurm.job_records import JobRecord, add_record, read_records
from slurm.job_states import array_tasks_of
from slurm.node.environment import Backend
from vae.digests import Digests, FileDigest
from vae.metrics import StartLine, StepLine, read_metrics
from vae.provenance import Attempt, read_attempts
from vae.run_dir import DIGESTS_FILE, DONE_FILE, SCORES_FILE, WEIGHTS_FILE, checkpoint_dir, figure_path
from vae.study import Study, prepare_study

LAUNCH, STATUS, PACK = (str(REPOSITORY / "jobs" / f"{name}.py") for name in ("launch", "status", "pack"))
STUDY = ["--variant", "all", "--gpus", "4", "--extractor", "smoke", "--run.batch_size", "8"]
STUDY += ["--data", "shards/tiny"]
SEEDS = ["--seeds", *map(str, range(100))]
# The study itself; a line for every step, to see the first.
REAL = ["--variant", "linear", "--data", "shards/real", "--extractor", "smoke", "--run.log_every_steps", "1"]
LOAD = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
LOAD += "import vae.training.trainer, torch.utils.tensorboard"
NUMBERS = count()
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


def until_it_ends(case: "Case", folder: Path) -> dict[str, float]:
    """Seconds that one call takes."""
    started = case.clock()
    done = subprocess.run([sys.executable, *case.words], cwd=folder, capture_output=True, text=True)
    if done.returncode != case.exit_code:
        raise SystemExit(f"{' '.join(case.words)}: {done.stderr}")
    return {"": case.clock() - started}


def until_the_first_step(case: "Case", folder: Path) -> dict[str, float]:
    """Seconds from a launch until its training has imported, is set up, and has taken a step; then Ctrl-C."""
    started_s = time.time()
    with (folder / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, *case.words], cwd=folder, stdout=said, stderr=said)
    run_dir = folder / "runs" / case.words[-1] / "linear-s0"
    while not (steps := [line for line in read_metrics(run_dir) if isinstance(line, StepLine)]):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(case.words)}: {(folder / 'said').read_text()}")
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait()
    (attempt,), start = read_attempts(run_dir), read_metrics(run_dir)[0]
    moments = {", imported": attempt.started_s or 0.0, ", set up": start.time, ", first step": steps[0].time}
    return {name: moment - started_s for name, moment in moments.items()}


@dataclass(frozen=True)
class Case:
    """Something a user types."""

    words: list[str]
    limit_s: float = 0.6
    exit_code: int = 0
    clock: Callable[[], float] = time.perf_counter
    measure: Callable[["Case", Path], dict[str, float]] = until_it_ends
    """Seconds of one call, by what is added to the case's name."""


def cases() -> dict[str, Case]:
    """What is measured, by name; studies are new at every call."""
    dry = [LAUNCH, *STUDY, "--cluster", "slurm", "--dry-run"]
    many = [LAUNCH, *STUDY, *SEEDS, "--cluster", "slurm", "--study"]
    real = [LAUNCH, *REAL, "--cluster", "local", "--study", f"real-{next(NUMBERS)}"]
    debug = [LAUNCH, *REAL, "--cluster", "debug", "--study", f"debug-{next(NUMBERS)}"]
    return {
        "python alone": Case(["-c", "pass"]),
        "launch.py --help": Case([LAUNCH, "--help"]),
        "launch.py --dry-run, 3 runs": Case(dry),
        "launch.py --dry-run, 300 runs": Case([*dry, *SEEDS]),
        "launch.py with a typing error": Case([LAUNCH, *STUDY, "--run.learning_rate", "1"], exit_code=2),
        "launch.py, 300 new runs": Case([*many, f"new-{next(NUMBERS)}"], 3.0),
        "launch.py, 300 queued again, CPU": Case([*many, "queued"], 1.5, clock=cpu_s),
        "status.py, 1,000 runs": Case([STATUS, "large"], 0.5),
        "imports of a training": Case(["-c", LOAD], 6.0),
        "launch.py, local": Case(real, 6.0, measure=until_the_first_step),
        "launch.py, debug": Case(debug, 6.0, measure=until_the_first_step),
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
    until_it_ends(cases()["launch.py, 300 queued again, CPU"], folder)
    with (programs / "queue").open("w") as queue:
        for record in read_records(folder / "runs" / "queued"):
            jobs = array_tasks_of([record])
            queue.writelines(f"{job}|PENDING|{record.name}|Priority|N/A|(null)\n" for job in jobs)


def prepare(folder: Path) -> None:
    """Everything that the cases find."""
    make_shards(folder / "shards" / "tiny")
    until_it_ends(Case([PACK, "phantom:80", str(folder / "shards" / "real")]), folder)
    make_programs(folder / "programs")
    make_large_study(folder / "runs" / "large")
    queue_study(folder, folder / "programs")


def main() -> int:
    """Measure all cases and print a table."""
    flags = side_by_side.parser(__doc__).parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a user's machine
    times: dict[str, list[float]] = {}
    limits: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for number in range(flags.rounds + 1):
            for title, case in cases().items():
                for addition, seconds in case.measure(case, Path(name)).items():
                    times.setdefault(title + addition, []).append(seconds)
                    limits[title + addition] = case.limit_s
            print(f"round {number} of {flags.rounds}", file=sys.stderr)
    print(f"{side_by_side.conditions('torch', 'accelerate', 'submitit')}; {flags.rounds} rounds\n")
    print(side_by_side.row(["case", "median, s", "slowest, s", "yardstick, s"]))
    print(side_by_side.row(["---"] * 4))
    counted = {name: measured[1:] for name, measured in times.items()}
    for name, measured in counted.items():
        cells = [statistics.median(measured), max(measured)]
        print(side_by_side.row([name, *(f"{cell:.2f}" for cell in cells), f"{limits[name]:.1f}"]))
    if flags.plot:
        side_by_side.draw(flags.plot, counted, "Waiting for a command", "seconds")
    return int(any(statistics.median(counted[name]) > limits[name] for name in counted))


if __name__ == "__main__":
    sys.exit(main())
