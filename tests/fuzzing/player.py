"""Plays inputs in processes of their own, which may hang, grow or die, and keeps what went wrong."""

import hashlib
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from tiny import REPOSITORY

from fuzzing.inputs import HANG_S, Bench, Case, Fault, Finding, judge
from fuzzing.table import FOUND_DIR, KINDS

AT_ONCE = 2
BATCH = 100
# Longer than what is interrupted by itself.
KILL_S = HANG_S + 5
# Of a process that has imported everything, which takes about 400; what one input needs comes on top.
MEMORY_LIMIT_MB = 2000
LOOK_EVERY_S = 0.02
# Inputs with the same answer that are kept.
KEPT_PER_PLACE = 10
FORK = get_context("fork")


def work(kind: str, begin: str, seconds: float, folder: Path, pipe: Connection) -> None:
    """Play inputs of one kind, and tell of each before and after; ends when the time is over."""
    logging.disable()
    until, bench = time.monotonic() + seconds, KINDS[kind].make(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # decoders in C talk, too
        os.dup2(nowhere, stream)
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
            if finding and finding.fault is Fault.HANG:
                os._exit(0)  # what was interrupted anywhere has left anything

    play()


@dataclass
class Player:
    """One kind of input, the process that plays it, and what it has told."""

    kind: str
    seed: int
    until: float
    counts: Counter[Fault] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    hangs: list[Path] = field(default_factory=list)
    """Inputs that took too long and are kept."""
    num_inputs: int = 0
    slowest_s: float = 0.0
    peak_mb: float = 0.0
    starts: int = 0

    def start(self) -> None:
        """Start a process that goes on where an earlier one has ended."""
        self.folder = tempfile.TemporaryDirectory()
        self.pipe, end = FORK.Pipe(duplex=False)
        begin, seconds = f"{self.seed} {self.kind} {self.starts}", self.until - time.monotonic()
        target = (self.kind, begin, seconds, Path(self.folder.name), end)
        self.process = FORK.Process(target=work, args=target)
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
            if self.process.exitcode and self.case is None:
                raise RuntimeError(f"inputs of the kind {self.kind} cannot be made") from None
            if self.process.exitcode:
                self._note(Finding(Fault.DEATH, f"the process ended with {self.process.exitcode}"))
            return self._end()
        memory_mb = self._memory_mb()
        if self.case and time.monotonic() - self.since > KILL_S:
            return self._kill(Finding(Fault.HANG, f"more than {KILL_S:g} s, in C"))
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
        """Resident memory of the process and of those it has started; keeps the peak of the largest."""
        sizes = [memory_of(pid) for pid in (self.process.pid, *children_of(self.process.pid))]
        self.peak_mb = max(self.peak_mb, *(size["VmHWM"] for size in sizes))
        return max(size["VmRSS"] for size in sizes)

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
        path = FOUND_DIR / self.kind / digest / self.case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.case.content)
        if finding.fault is Fault.HANG:
            self.hangs.append(path)
        if self.places[str(finding)] == 1:
            print(
                f"{finding}\n    python benchmarks/fuzz.py --play {path.relative_to(REPOSITORY)}", flush=True
            )

    def row(self) -> list[str]:
        """Its row of the table."""
        counts = [str(self.counts[fault]) for fault in Fault]
        return [self.kind, f"{self.num_inputs:,}", *counts, f"{self.slowest_s:.1f}", f"{self.peak_mb:,.0f}"]


def play_all(kinds: list[str], minutes: float, number: int) -> list[Player]:
    """Play all kinds, each for its share of the time."""
    share_s = 60 * minutes / math.ceil(len(kinds) / AT_ONCE)
    waiting, playing, over = list(kinds), list[Player](), list[Player]()
    while waiting or playing:
        while waiting and len(playing) < AT_ONCE:
            playing.append(Player(waiting.pop(0), number, time.monotonic() + share_s))
            playing[-1].start()
        over += [player for player in playing if not player.look()]
        playing = [player for player in playing if player not in over]
        time.sleep(LOOK_EVERY_S)
    for player in over:  # other work may have kept the machine busy
        player.counts[Fault.HANG] -= sum(not hangs_again(path) for path in player.hangs)
    return over


def hangs_again(path: Path) -> bool:
    """Whether an input goes wrong once more now that nothing else is played."""
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "fuzz.py"), "--play", str(path)]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def children_of(pid: int | None) -> list[int]:
    """Processes that a process has started."""
    with suppress(OSError):
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for child in " ".join(texts).split()]
    return []


def memory_of(pid: int | None) -> Counter[str]:
    """What /proc says of a process's memory, by name, in MB."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return Counter(
            {line.split(":")[0]: int(line.split()[1]) // 1000 for line in lines if line.endswith(" kB")}
        )
    return Counter()
