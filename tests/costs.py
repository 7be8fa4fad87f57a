"""What it costs to decode one file: `python tests/costs.py` answers with seconds, megabytes and the reason.

A process of its own, one for all files: the system's account of ended processes holds nothing else.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.decode_pool import Worker
from data_prep.items import Item
from data_prep.pack_plan import PackOptions, Plan
from data_prep.shards import Reject


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the worker, start included, and why no pixels came."""

    seconds: float
    memory_mb: float
    """The largest that this worker, or one before it, had resident."""
    reason: str


@contextmanager
def clerk() -> Iterator[Callable[[Path], Cost]]:
    """A function that has a file decoded as the packer does, elsewhere."""
    from tiny import child_environment  # workers import this file, and need no more than packers do

    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def cost_of(path: Path) -> Cost:
            print(path, file=stdin, flush=True)
            return Cost(**json.loads(stdout.readline()))

        yield cost_of


def plan_of(folder: Path, is_dicom: bool) -> Plan:
    """The plan, without shards, of a folder whose images are of class `a`."""
    return Plan("", "dicom" if is_dicom else "files", str(folder), PackOptions(), ("a",), ())


def measure(path: Path) -> Cost:
    """Decode a file in a worker that is started for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    worker = Worker(plan_of(path.parent, path.suffix == ".dcm"))
    (answer,) = worker.decode([Item(path.name, "a", "", "")])
    worker.end()
    if worker.process is not None:
        worker.process.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, used.ru_maxrss / 1000, answer.reason if isinstance(answer, Reject) else "")


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(vars(measure(Path(line.rstrip("\n"))))), flush=True)


if __name__ == "__main__":
    main()
