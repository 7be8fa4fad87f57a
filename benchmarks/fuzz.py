"""Play made-up inputs of every format at every reader and front door, for as long as is asked for.

    python benchmarks/fuzz.py --minutes 30 --seed 0
    python benchmarks/fuzz.py --play scratch/fuzz/study/1a2b3c4d/runs/old/jobs.json

An input should be used, or refused with one clear line. What counts against it: a traceback, more than 10 s, a
wrong exit code, damage that is used as if it were whole, and the death of the process that reads it. Each kind
of input (tests/fuzzing/table.py) has its share of the time and a process of its own, two at once, which is
started anew where an input has ended it. The same seed plays the same inputs in the same order.

What is wrong is kept in scratch/fuzz, and shown with the command that plays it again. Prints a table; the exit
code is 1 if anything was wrong.
"""

import argparse
import hashlib
import logging
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
sys.path.insert(0, str(REPOSITORY))
# before torch: a process that is forked must have no threads
os.environ["OMP_NUM_THREADS"] = "1"

from fuzzing.inputs import Bench, Case, Fault, Finding, judge
from fuzzing.table import KINDS
from hypothesis import HealthCheck, Phase, given, seed, settings

AT_ONCE = 2
BATCH = 100
HANG_S = 10.0
# Of a process that has imported everything, which takes about 500; what one input needs comes on top.
MEMORY_LIMIT_MB = 2000
LOOK_EVERY_S = 0.02
FOUND_DIR = Path("scratch") / "fuzz"
# Inputs with the same answer that are kept.
KEPT_PER_PLACE = 10
COLUMNS = ["inputs", *map(str, Fault), "slowest, s", "peak memory, MB"]


def work(kind: str, begin: str, seconds: float, folder: Path, pipe: Connection) -> None:
    """Play inputs of one kind, and tell of each before and after; ends when the time is over."""
    logging.disable()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # decoders in C talk, too
        os.dup2(nowhere, stream)
    until, bench = time.monotonic() + seconds, KINDS[kind].make(folder)
    batch = 0
    while time.monotonic() < until:
        play_batch(bench, f"{begin} {batch}", until, pipe)
        batch += 1


def play_batch(bench: Bench, begin: str, until: float, pipe: Connection) -> None:
    """Play inputs that the text `begin` decides."""

    @seed(begin)
    @settings(
        max_examples=BATCH,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(bench.cases)
    def play(case: Case) -> None:
        if time.monotonic() < until:
            pipe.send(case)
            begun = time.monotonic()
            finding = judge(bench, case)
            pipe.send((finding, time.monotonic() - begun))

    play()


@dataclass
class Player:
    """One kind of input, the process that plays it, and what it has told."""

    kind: str
    seed: int
    until: float
    counts: Counter[Fault] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    num_inputs: int = 0
    slowest_s: float = 0.0
    peak_mb: float = 0.0
    starts: int = 0

    def start(self) -> None:
        """Start a process that goes on where an earlier one has ended."""
        self.folder = tempfile.TemporaryDirectory()
        self.pipe, end = get_context("fork").Pipe(duplex=False)
        begin, seconds = f"{self.seed} {self.kind} {self.starts}", self.until - time.monotonic()
        target = (self.kind, begin, seconds, Path(self.folder.name), end)
        self.process = get_context("fork").Process(target=work, args=target, daemon=True)
        self.process.start()
        end.close()
        self.starts += 1
        self.case: Case | None = None
        self.since = time.monotonic()

    def look(self) -> bool:
        """Take in what the process has told, and see after it; whether there is more to come."""
        try:
            while self.pipe.poll():
                self._take(self.pipe.recv())
        except EOFError:
            self.process.join()
            if self.process.exitcode:
                self._note(Finding(Fault.DEATH, f"the process ended with {self.process.exitcode}"))
            return self._end()
        memory_mb = self._memory_mb()
        if self.case and time.monotonic() - self.since > HANG_S:
            return self._kill(Finding(Fault.HANG, f"longer than {HANG_S:g} s"))
        if memory_mb > MEMORY_LIMIT_MB:
            return self._kill(Finding(Fault.DEATH, f"more than {MEMORY_LIMIT_MB} MB"))
        return True

    def _take(self, told: Case | tuple[Finding | None, float]) -> None:
        if isinstance(told, Case):
            self.case, self.since = told, time.monotonic()
            return
        finding, seconds = told
        self.num_inputs += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if finding:
            self._note(finding)
        self.case = None

    def _memory_mb(self) -> float:
        """Resident memory of the process; keeps the peak."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return 0.0
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.endswith(" kB")}
        self.peak_mb = max(self.peak_mb, sizes.get("VmHWM", 0.0))
        return sizes.get("VmRSS", 0.0)

    def _kill(self, finding: Finding) -> bool:
        self.process.kill()
        self.process.join()
        self.slowest_s = max(self.slowest_s, time.monotonic() - self.since)
        self._note(finding)
        return self._end()

    def _end(self) -> bool:
        """Clear up; goes on with another process if time is left."""
        self.pipe.close()
        self.folder.cleanup()
        if self.until - time.monotonic() < 1:
            return False
        self.start()
        return True

    def _note(self, finding: Finding) -> None:
        """Count what is wrong, and keep the input that shows it."""
        self.counts[finding.fault] += 1
        self.places[str(finding)] += 1
        if self.case is None or self.places[str(finding)] > KEPT_PER_PLACE:
            return
        digest = hashlib.sha256(self.case.name.encode() + self.case.content).hexdigest()[:8]
        path = REPOSITORY / FOUND_DIR / self.kind / digest / self.case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.case.content)
        if self.places[str(finding)] == 1:
            print(f"{finding}\n    python benchmarks/fuzz.py --play {path.relative_to(REPOSITORY)}", flush=True)

    def row(self) -> list[str]:
        """Its row of the table."""
        counts = [str(self.counts[fault]) for fault in Fault]
        return [self.kind, f"{self.num_inputs:,}", *counts, f"{self.slowest_s:.1f}", f"{self.peak_mb:,.0f}"]


def play_all(kinds: list[str], minutes: float, number: int) -> list[Player]:
    """Play all kinds, each for its share of the time."""
    share_s = 60 * minutes * AT_ONCE / len(kinds)
    waiting, playing, over = list(kinds), list[Player](), list[Player]()
    while waiting or playing:
        while waiting and len(playing) < AT_ONCE:
            playing.append(Player(waiting.pop(0), number, time.monotonic() + share_s))
            playing[-1].start()
        over += [player for player in playing if not player.look()]
        playing = [player for player in playing if player not in over]
        time.sleep(LOOK_EVERY_S)
    return over


def table(players: list[Player]) -> Iterator[str]:
    """The figures as Markdown."""
    yield "| " + " | ".join(["kind", *COLUMNS]) + " |"
    yield "| " + " | ".join(["---"] * (1 + len(COLUMNS))) + " |"
    for player in players:
        yield "| " + " | ".join(player.row()) + " |"
    counts = [str(sum(player.counts[fault] for player in players)) for fault in Fault]
    peaks = [f"{max(player.slowest_s for player in players):.1f}", f"{max(p.peak_mb for p in players):,.0f}"]
    yield "| " + " | ".join(["all", f"{sum(p.num_inputs for p in players):,}", *counts, *peaks]) + " |"


def play_again(path: Path) -> int:
    """Play one input that was kept: a path with the kind and a name of its own before the input's."""
    parts = path.parts
    at = max(number for number, part in enumerate(parts[:-2]) if part in KINDS)
    case = Case("/".join(parts[at + 2 :]), path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        finding = judge(KINDS[parts[at]].make(Path(folder)), case)
    print(f"{finding}\n{finding.report}" if finding else "nothing is wrong")
    return 1 if finding else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--table", type=Path, help="file to write the table to, too")
    parser.add_argument("--play", type=Path, metavar="INPUT", help="play one input again")
    flags = parser.parse_args()
    if flags.play:
        return play_again(flags.play)
    players = play_all(flags.kinds, flags.minutes, flags.seed)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    title = f"`python benchmarks/fuzz.py --minutes {flags.minutes:g} --seed {flags.seed}`"
    text = "\n".join([f"{title}, {time.strftime('%Y-%m-%d')}, {machine}", "", *table(players)])
    print(f"\n{text}")
    if flags.table:
        flags.table.write_text(f"{text}\n")
    return 1 if any(player.counts for player in players) else 0


if __name__ == "__main__":
    sys.exit(main())
