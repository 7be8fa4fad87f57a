"""How long commands take to answer, where a user waits for it: `launch` before it submits, and `status`.

    python benchmarks/launch.py [--rounds 7]

Yardstick: 1.5 s, and 2 s for the status of 1,000 runs; `python -c pass` shows what Python itself takes. Each
round runs every case once, in turns. Prints the median and the slowest of each; the exit code is 1 if one of
the medians misses its yardstick.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny import REPOSITORY, make_shards

from data_prep.files import write_json, write_text
from slurm.job_records import JobRecord, add_record
from vae.study import DONE_FILE, METRICS_FILE, PROVENANCE_FILE, SCORES_FILE, Study, prepare_study

LIMIT_S = 1.5
STATUS_LIMIT_S = 2.0
STATUS = "status.py, 1,000 runs"
STUDY = ["--variant", "all", "--gpus", "4", "--extractor", "smoke", "--run.batch_size", "8"]


def cases() -> dict[str, list[str]]:
    """What a user types, by name."""
    launch = str(REPOSITORY / "jobs" / "launch.py")
    dry = [launch, *STUDY, "--cluster", "slurm", "--dry-run"]
    return {
        "python alone": ["-c", "pass"],
        "launch.py --help": [launch, "--help"],
        "launch.py --dry-run, 3 runs": dry,
        "launch.py --dry-run, 300 runs": [*dry, "--seeds", *map(str, range(100))],
        "launch.py with a typing error": [launch, *STUDY, "--run.learning_rate", "1"],
        STATUS: [str(REPOSITORY / "jobs" / "status.py"), "large"],
    }


def make_large_study(study_dir: Path) -> None:
    """1,000 runs that have trained for as long as a real one; every other one is done and has scores."""
    names = tuple(f"linear-s{seed}" for seed in range(1000))
    prepare_study(study_dir, Study("large", names, "smoke"))
    add_record(
        study_dir, JobRecord("7", "train", "slurm", True, tuple(range(1000)), "login", name="large-train")
    )
    start = {"kind": "start", "step": 0, "total_steps": 2400, "steps_per_epoch": 160, "time": 10.0}
    values = {
        "loss": 45000.123,
        "bce": 45000.1,
        "kl": 1.2,
        "lr": 0.001,
        "grad_norm": 3.3,
        "images_per_s": 640.1,
    }
    steps = [
        {"kind": "step", "step": step, "epoch": step / 160, **values, "time": 10 + step / 20}
        for step in range(10, 2400, 10)
    ]
    metrics = "".join(json.dumps(line) + "\n" for line in (start, *steps))
    figures = (
        "rfid_paper",
        "gfid_paper",
        "is_reconstructions",
        "is_samples",
        "rfid_2048",
        "gfid_2048",
        "ssim",
    )
    scores = {"checkpoint_sha256": "ab", "extractor": "smoke", "label": "smoke, not comparable"}
    for number, name in enumerate(names):
        write_text(study_dir / name / METRICS_FILE, metrics)
        write_json(study_dir / name / PROVENANCE_FILE, {"attempts": [{"started_s": 0.0, "from_step": 0}]})
        if number % 2:
            write_json(study_dir / name / DONE_FILE, {"weights_sha256": "ab"})
            known = {figure: {"value": number / 7} for figure in figures}
            write_json(study_dir / name / SCORES_FILE, {**scores, "scores": known})


def seconds(words: list[str], folder: Path) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode != (2 if "--run.learning_rate" in words else 0):
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - started


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
        make_large_study(folder / "runs" / "large")
        times: dict[str, list[float]] = {case: [] for case in cases()}
        for _ in range(rounds):
            for case, words in cases().items():
                times[case].append(seconds(words, folder))
    limits = {case: STATUS_LIMIT_S if case == STATUS else LIMIT_S for case in times}
    medians = {case: statistics.median(measured) for case, measured in times.items()}
    print(f"{'case':32} {'median, s':>9} {'slowest, s':>10} {'yardstick, s':>12}   of {rounds} rounds")
    for case, limit in limits.items():
        print(f"{case:32} {medians[case]:9.2f} {max(times[case]):10.2f} {limit:12.1f}")
    return int(any(medians[case] > limit for case, limit in limits.items()))


if __name__ == "__main__":
    sys.exit(main())
