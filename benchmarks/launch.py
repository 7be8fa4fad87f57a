"""How long the launcher takes to answer, where a user waits for it: --help and --dry-run.

    python benchmarks/launch.py [--rounds 7]

Yardstick: 1.5 s; `python -c pass` shows what Python itself takes. Each round runs every case once, in turns.
Prints the median and the slowest of each; the exit code is 1 if a median misses the yardstick.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny import REPOSITORY, make_shards

LIMIT_S = 1.5
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
    }


def seconds(words: list[str], folder: Path) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
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
        times: dict[str, list[float]] = {case: [] for case in cases()}
        for _ in range(rounds):
            for case, words in cases().items():
                times[case].append(seconds(words, folder))
    print(f"{'case':32} {'median s':>9} {'slowest s':>10}   of {rounds} rounds; yardstick {LIMIT_S} s")
    for case, measured in times.items():
        print(f"{case:32} {statistics.median(measured):9.2f} {max(measured):10.2f}")
    return int(any(statistics.median(measured) > LIMIT_S for measured in times.values()))


if __name__ == "__main__":
    sys.exit(main())
