"""What it costs to decode one file: `python tests/costs.py FILE` prints seconds, megabytes and the answer.

In a process of its own, so that the system's account of ended processes holds nothing else.
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny import child_environment

from data_prep.decode_pool import Worker
from data_prep.items import Item
from data_prep.pack_plan import PackOptions, Plan
from data_prep.shards import Reject


@dataclass(frozen=True)
class Cost:
    """CPU seconds and largest resident memory of the workers, start included, and why no pixels came."""

    seconds: float
    memory_mb: float
    reason: str


def cost_of(path: Path) -> Cost:
    """Decode `path` as the packer does, elsewhere."""
    command = [sys.executable, __file__, str(path)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    return Cost(**json.loads(done.stdout))


def plan_of(folder: Path, is_dicom: bool) -> Plan:
    """The plan, without shards, of a folder whose images are of class `a`."""
    return Plan("", "dicom" if is_dicom else "files", str(folder), PackOptions(), ("a",), ())


def main() -> None:
    path = Path(sys.argv[1])
    worker = Worker(plan_of(path.parent, path.suffix == ".dcm"))
    (answer,) = worker.decode([Item(path.name, "a", "", "")])
    worker.end()
    if worker.process is not None:
        worker.process.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    reason = answer.reason if isinstance(answer, Reject) else ""
    cost = {"seconds": used.ru_utime + used.ru_stime, "memory_mb": used.ru_maxrss / 1000, "reason": reason}
    print(json.dumps(cost))


if __name__ == "__main__":
    main()
