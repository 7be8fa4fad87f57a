"""Checkpoints that outlive crashes: written aside, checksummed, renamed; the newest whole one wins.

checkpoints/step_00000120/
    model.safetensors   weights
    state.pt            optimiser, gradient scaler, random state, position (read with weights_only=True)
    meta.json           step and the SHA-256 of both
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.errors import RunError
from data_prep.files import fsync_path, sha256_file, temporary_path, write_json
from vae.model import VAE, build_model
from vae.study import DONE_FILE, read_json, read_run

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
WEIGHTS = "model.safetensors"
STATE = "state.pt"
META = "meta.json"
STEP_NAME = re.compile(r"step_(\d{8,})")


def folder_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run_dir / FOLDER / f"step_{step:08d}"


def save(run_dir: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`, then drop all but the newest `keep`. Returns its folder.

    A kill at any moment leaves either no such folder or a whole one.
    """
    final = folder_of(run_dir, step)
    part = temporary_path(final)
    part.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part / WEIGHTS)
        torch.save(state, part / STATE)
        digests = {name: sha256_file(part / name) for name in (WEIGHTS, STATE)}
        for name in digests:
            fsync_path(part / name)
        write_json(part / META, {"step": step, "sha256": digests})
        if final.exists():  # damaged, or it would have been resumed from
            shutil.rmtree(final)
        part.rename(final)
        fsync_path(final.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, in three writers' words
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(
            f"cannot save checkpoint {final}: {error}",
            "make room there and run the same command again; it goes on from the last whole checkpoint",
        ) from error
    _prune(run_dir, keep)
    return final


def _prune(run_dir: Path, keep: int) -> None:
    """Drop old checkpoints and what killed saves left behind (one writer per run, so they are dead)."""
    for old in _by_age(run_dir)[keep:]:
        shutil.rmtree(old)
    for stale in (run_dir / FOLDER).glob(".step_*.part"):
        shutil.rmtree(stale, ignore_errors=True)


def _by_age(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if STEP_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file has its recorded SHA-256."""
    meta = read_json(checkpoint / META)
    if meta is None:
        return f"{META} is missing or damaged"
    for name, digest in meta["sha256"].items():
        try:
            if sha256_file(checkpoint / name) != digest:
                return f"{name} does not have its recorded SHA-256"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def find_latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint, or None. Damaged ones are passed over with a warning."""
    for checkpoint in _by_age(run_dir):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        log.warning("skipping damaged checkpoint %s: %s", checkpoint, reason)
    return None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Everything of `state.pt`, on the CPU. Only tensors and plain values are unpickled."""
    return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, on the CPU."""
    return load_file(checkpoint / WEIGHTS)


def weights_sha256(checkpoint: Path) -> str:
    """SHA-256 of the weights file, as recorded when it was written."""
    meta = read_json(checkpoint / META)
    assert meta is not None  # callers pass checkpoints that are whole
    return meta["sha256"][WEIGHTS]


def load_trained(run_dir: Path) -> tuple[VAE, dict[str, Any]]:
    """The finished model in eval mode on the CPU, and the run's done.json.

    Raises:
        RunError: the run is not complete, or its weights are gone or damaged.
    """
    done = read_json(run_dir / DONE_FILE)
    if done is None:
        raise RunError(f"{run_dir} is not trained to the end", "train it with `python jobs/train.py`")
    weights = run_dir / FOLDER / done["checkpoint"] / WEIGHTS
    if not weights.exists() or sha256_file(weights) != done["weights_sha256"]:
        raise RunError(
            f"the weights in {weights} are missing or damaged",
            f"delete {run_dir / DONE_FILE} and train again: it goes on from the last whole checkpoint",
        )
    tensors = load_file(weights)
    model = build_model(read_run(run_dir)).to(next(iter(tensors.values())).dtype)
    model.load_state_dict(tensors)
    return model.eval(), done
