"""Cases measured in turns, in one run, and shown beside a yardstick."""

import argparse
import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Case:
    """One way of doing a piece of work."""

    name: str
    run: Callable[[], Any]
    """Does the work once and returns how many units (images, files) that was; or that, and the seconds."""


class Apart:
    """A case in a process of its own: the allocator, threads and memory of one do not meet another.

    `make(*arguments)`, a function of a script, is called there and gives the case's `run`, which may return
    the seconds beside the units where starting is not to be counted. Use as a context manager.
    """

    def __init__(self, name: str, make: Callable[..., Callable[[], Any]], *arguments: object) -> None:
        context = get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, make, arguments))
        self.process.start()
        self.case = Case(name, self._run)
        self.peak_mb = 0.0
        """Resident memory at most, so far."""

    def _run(self) -> Any:
        self.pipe.send(True)
        units, self.peak_mb = self.pipe.recv()
        return units

    def __enter__(self) -> Case:
        return self.case

    def __exit__(self, *_: object) -> None:
        self.pipe.send(False)
        self.process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[], Any]], arguments: tuple[object, ...]) -> None:
    run = make(*arguments)
    while pipe.recv():
        units = run()
        pipe.send((units, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


Found = dict[str, list[float]]
"""Units per second of every round, by the name of the case."""


def measure(cases: Sequence[Case], rounds: int, warm_up: int = 1) -> Found:
    """Let the cases take turns, so that what else the machine does meets them all."""
    for case in cases:
        for _ in range(warm_up):  # allocation, page cache, the start of workers
            case.run()
    found: Found = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            start = time.perf_counter()
            done = case.run()
            units, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
            found[case.name].append(units / seconds)
            print(f"round {number + 1}: {case.name}: {found[case.name][-1]:,.4g}", file=sys.stderr)
    return found


def table(found: Mapping[str, list[float]], unit: str, yardstick: str, limit: str = "") -> Iterator[str]:
    """Markdown: median, spread, the ratio to one case, and the share of another, the machine's limit."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    header = ["case", f"{unit}, median", "lowest - highest", f"x {yardstick}"]
    yield row(header + ["share of the limit"] * bool(limit))
    yield row(["---"] * (len(header) + bool(limit)))
    for name, values in found.items():
        cells = [name, f"{middle[name]:,.4g}", f"{min(values):,.4g} - {max(values):,.4g}"]
        cells.append(f"{middle[name] / middle[yardstick]:.2f}")
        yield row([*cells, f"{middle[name] / middle[limit]:.0%}"] if limit else cells)


def row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def draw(path: Path, found: Mapping[str, list[float]], title: str, unit: str) -> None:
    """Bars of the medians with the spread, the first case on top, as SVG."""
    names = [*found][::-1]
    middle = [statistics.median(found[name]) for name in names]
    spread = [
        [centre - min(found[name]) for name, centre in zip(names, middle, strict=True)],
        [max(found[name]) - centre for name, centre in zip(names, middle, strict=True)],
    ]
    plt.rcParams["svg.hashsalt"] = title  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.34 * len(names)), layout="constrained")
    axes.barh(names, middle, xerr=spread, color="#4878a8", ecolor="#555555", capsize=2)
    axes.bar_label(axes.containers[-1], [f" {centre:,.4g}" for centre in middle], padding=3)  # type: ignore[arg-type]
    axes.margins(x=0.15)
    axes.set(title=title, xlabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def conditions(*packages: str) -> str:
    """The machine, the day, and the versions that figures belong to."""
    named = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{time.strftime('%Y-%m-%d')}, {processor()}, Python {platform.python_version()}, {named}"


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def parser(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Flags that every script has; add your own."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--rounds", type=int, default=rounds, help="turns of every case (%(default)s)")
    flags.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the figures there")
    return flags
