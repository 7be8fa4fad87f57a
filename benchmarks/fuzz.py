"""Play made-up inputs of every format at every reader and front door, for as long as is asked for.

    python benchmarks/fuzz.py --minutes 30 --seed 0
    python benchmarks/fuzz.py --play scratch/fuzz/study/1a2b3c4d/runs/old/jobs.json

An input should be used, or refused with one clear line. What counts against it: a traceback, more than 10 s,
a wrong exit code, control characters, damage that is used as if it were whole, and the death of the process
that reads it. Each kind of input (tests/fuzzing/table.py) has its share of the time and a process of its
own, two at once, which is started anew where an input has ended it. The same seed plays the same inputs in
the same order.

What is wrong is kept in scratch/fuzz, and shown with the command that plays it again; what took too long is
played once more at the end, and counts if it does so again. Prints a table; the exit code is 1 if anything
was wrong.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
sys.path.insert(0, str(REPOSITORY))
# before torch: a process that is forked must have no threads
os.environ["OMP_NUM_THREADS"] = "1"

# Everything else is imported where it is needed: a process that decodes images imports this file.
if TYPE_CHECKING:
    from fuzzing.player import Player


def table(players: list["Player"]) -> Iterator[str]:
    """The figures as Markdown."""
    from fuzzing.inputs import Fault

    columns = ["kind", "inputs", *map(str, Fault), "slowest, s", "peak memory, MB"]
    counts = [str(sum(player.counts[fault] for player in players)) for fault in Fault]
    most = [f"{max(p.slowest_s for p in players):.1f}", f"{max(p.peak_mb for p in players):,.0f}"]
    total = ["all", f"{sum(player.num_inputs for player in players):,}", *counts, *most]
    for cells in (columns, ["---"] * len(columns), *(player.row() for player in players), total):
        yield f"| {' | '.join(cells)} |"


def play_again(path: Path) -> int:
    """Play one input that was kept."""
    from fuzzing.inputs import judge
    from fuzzing.table import KINDS, read_input

    kind, case = read_input(path)
    with tempfile.TemporaryDirectory() as folder:
        finding = judge(KINDS[kind].make(Path(folder)), case)
    print(f"{finding}\n{finding.report}" if finding else "nothing is wrong")
    return 1 if finding else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="some kinds only")
    parser.add_argument("--table", type=Path, help="file to write the table to, too")
    parser.add_argument("--play", type=Path, metavar="INPUT", help="play one input again")
    flags = parser.parse_args()
    if flags.play:
        return play_again(flags.play)
    from fuzzing.player import play_all
    from fuzzing.table import KINDS

    players = play_all(flags.kinds or list(KINDS), flags.minutes, flags.seed)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    title = f"`python benchmarks/fuzz.py --minutes {flags.minutes:g} --seed {flags.seed}`"
    text = "\n".join([f"{title}, {time.strftime('%Y-%m-%d')}, {machine}", "", *table(players)])
    print(f"\n{text}")
    if flags.table:
        flags.table.write_text(f"{text}\n")
    return 1 if any(player.counts.total() for player in players) else 0


if __name__ == "__main__":
    sys.exit(main())
