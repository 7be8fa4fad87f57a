"""Tiny data and runs, made on the spot."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data_prep.files import write_json, write_text
from data_prep.json_records import write_record
from data_prep.manifest import write_manifest
from data_prep.shards import ImageRecord, write_shard
from vae.config import RunConfig
from vae.metrics import MetricsLine
from vae.provenance import Attempt, Provenance
from vae.run_dir import DONE_FILE, METRICS_FILE, PROVENANCE_FILE, SCORES_FILE, Done
from vae.study import prepare_run

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE_PX = 32
COUNTS = {"train": 70, "val": 10, "test": 13}
SHARD_IMAGES = 40
CLASS_NAMES = ("NORMAL", "PNEUMONIA")

# Small enough for hundreds of steps a second on one core.
TINY = {
    "image_size_px": SIZE_PX,
    "widths": (4, 8, 8, 16),
    "latent_dim": 8,
    "latent_channels": 4,
    "batch_size": 8,
    "epochs": 3,
    "log_every_steps": 1,
    "trackers": (),
}

# The same for the launcher.
TINY_FLAGS = (
    *("--extractor", "smoke"),
    *("--run.widths", "[4,8,8,16]"),
    *("--run.latent_dim", "8"),
    *("--run.batch_size", "8"),
    *("--run.trackers", "[]"),
)


def blob(index: int) -> np.ndarray:
    """A bright smooth spot whose place and size depend on `index`, uint8 [SIZE_PX, SIZE_PX]."""
    x0, y0, width = np.random.default_rng(index).uniform(0.2, 0.8, 3)
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] / SIZE_PX
    spot: np.ndarray = (255 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (0.1 * width))).astype(np.uint8)
    return spot


def make_shards(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    """Pack blobs into shards with a manifest; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names, first = [], 0
    for split, count in counts.items():
        for start in range(0, count, SHARD_IMAGES):
            numbers = range(start, min(start + SHARD_IMAGES, count))
            names.append(f"{split}-{start:05d}.h5")
            attributes = {"class_names": json.dumps(CLASS_NAMES), "split": split, "plan_sha256": "tiny"}
            items = [(record(split, n), blob(first + n).tobytes()) for n in numbers]
            write_shard(folder / names[-1], SIZE_PX, attributes, items)
        first += count
    write_manifest(folder, {"size_px": SIZE_PX}, CLASS_NAMES, names)
    return folder


def record(split: str, number: int) -> ImageRecord:
    """What a shard says about one blob."""
    return ImageRecord(f"{split}/{number}", number % 2, "", "0" * 64, 1, SIZE_PX, SIZE_PX, "L")


def make_run(run_dir: Path, shards: Path, **settings: Any) -> Path:
    """A run folder with a tiny model; returns it."""
    prepare_run(run_dir, RunConfig(**{**TINY, "data": str(shards), **settings}))
    return run_dir


def finish(run_dir: Path, weights_sha256: str = "ab", step: int = 3) -> None:
    """Write the done.json of a run that was never trained."""
    write_record(run_dir / DONE_FILE, Done(step, 1, f"step_{step:08d}", weights_sha256, "f" * 64))


def score(run_dir: Path, **changes: Any) -> None:
    """Write the scores.json of such a run: a score that it has, and one that it cannot have."""
    card = {"checkpoint_sha256": "ab", "extractor": "smoke", "label": "smoke, not comparable"}
    scores = {"ssim": {"value": 0.5}, "gfid_paper": {"value": None, "reason": "cannot sample"}}
    write_json(run_dir / SCORES_FILE, {**card, "scores": scores, **changes})


def write_attempts(run_dir: Path, *attempts: Attempt) -> None:
    """Write provenance.json."""
    write_record(run_dir / PROVENANCE_FILE, Provenance(attempts=attempts))


def write_lines(run_dir: Path, *lines: MetricsLine) -> None:
    """Write metrics.jsonl."""
    text = "".join(msgspec.json.encode(line).decode() + "\n" for line in lines)
    write_text(run_dir / METRICS_FILE, text)


def child_environment() -> dict[str, str]:
    """Environment for a child process that imports this repository and uses one thread."""
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
