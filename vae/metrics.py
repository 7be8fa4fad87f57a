"""metrics.jsonl: the lines that a training writes, and how far it is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from vae.study import METRICS_FILE, _read_lines


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl, oldest first; a half-written last line is left out."""
    return _read_lines(run_dir / METRICS_FILE)


def slowest_stop_s(run_dir: Path) -> float:
    """Longest time a run has taken to save, and to validate if a warning comes just then; 0 = unknown."""
    lines = read_metrics(run_dir)
    saves = [line["seconds"] for line in lines if line["kind"] == "save"]
    validations = [line.get("val_seconds", 0.0) for line in lines if line["kind"] == "epoch"]
    return max(saves, default=0.0) + max(validations, default=0.0)


# metrics.jsonl of a long run is read from its end: so much, and more if that holds no mark. A thousand runs
# are told of within two seconds, so its lines are told apart before JSON is read.
TAIL_BYTES = 16 * 1024
MARK = re.compile(rb'^\{"kind": "(start|save)"', re.MULTILINE)
STEP = b'{"kind": "step"'


def progress(run_dir: Path) -> dict[str, Any]:
    """Where the training is, from metrics.jsonl: step, total_steps, epoch, loss, images_per_s, eta_s."""
    return _progress(*_ends(run_dir / METRICS_FILE))


def _progress(start: dict[str, Any], tail: list[dict[str, Any]]) -> dict[str, Any]:
    begins = [place for place, line in enumerate(tail) if line.get("kind") == "start"]
    own = tail[begins[-1] :] if begins else tail  # no pace over the time in which it waited to go on
    steps = [line for line in tail if line.get("kind") == "step"]
    last: dict[str, Any] = next((line for line in reversed(tail) if "step" in line), {})
    total = int(start.get("total_steps", 0))
    step = int(last.get("step", 0))
    eta_s = None
    paced = [line for line in own if line.get("kind") == "step"][-2:]
    if len(paced) == 2 and paced[1]["step"] > paced[0]["step"]:
        pace = (paced[1]["time"] - paced[0]["time"]) / (paced[1]["step"] - paced[0]["step"])
        eta_s = max(0.0, (total - step) * pace)
    newest = steps[-1] if steps else {}
    return {
        "step": step,
        "total_steps": total,
        "epoch": step / start["steps_per_epoch"] if start.get("steps_per_epoch") else 0.0,
        "loss": newest.get("loss"),
        "images_per_s": newest.get("images_per_s"),
        "eta_s": eta_s,
    }


def saved_step(run_dir: Path) -> int:
    """The newest step that a training can go on from; 0 if none is saved."""
    return max((int(path.name[5:]) for path in run_dir.glob("checkpoints/step_*")), default=0)


def _ends(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of metrics.jsonl, and those that `goodput` and `_progress` need of its last ones.

    Those are the lines from a start or a save on, of the many that tell of steps the last two alone; a
    half-written line is left out.
    """
    try:
        with path.open("rb") as file:
            first = file.readline()
            size, length = file.seek(0, os.SEEK_END), TAIL_BYTES
            while not MARK.search(tail := _last_lines(file, size, length)) and length < size:
                length *= 4
    except FileNotFoundError:
        return {}, []
    texts = [line for line in tail.splitlines(keepends=True) if line.endswith(b"\n")]
    idle = set([place for place, line in enumerate(texts) if line.startswith(STEP)][:-2])
    start = json.loads(first) if first.endswith(b"\n") else {}
    return start, [json.loads(line) for place, line in enumerate(texts) if place not in idle]


def _last_lines(file: BinaryIO, size: int, length: int) -> bytes:
    """The whole lines among the last `length` of `size` bytes."""
    file.seek(max(0, size - length))
    data = file.read(length)
    return data if length >= size else data[data.find(b"\n") + 1 :]
