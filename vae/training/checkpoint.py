"""Checkpoints that outlive crashes: written aside, checksummed, renamed; the newest whole one wins.

checkpoints/step_00000120/
    model.safetensors   weights
    state.pt            optimiser, gradient scaler, random state, position (read with weights_only=True)
    meta.json           step and the SHA-256 of both
"""

import logging
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.errors import DamagedFile, RunError
from data_prep.files import fsync_path, sha256_file, temporary_path
from data_prep.json_records import Record, read_record, write_record
from vae.model import VAE, build_model
from vae.run_dir import DONE_FILE, Done, checkpoint_dir, checkpoint_dirs, read_done, unfinished_checkpoints
from vae.study import read_run

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
STATE = "state.pt"
META = "meta.json"

# Optimiser, gradient scaler, random state and position, as torch saves them.
StateDict = dict[str, Any]


class Meta(Record, frozen=True):
    """meta.json of a checkpoint."""

    step: int
    sha256: dict[str, str]
    """Of each file beside it, by name."""


def save(run_dir: Path, step: int, weights: dict[str, Tensor], state: StateDict, keep: int) -> Path:
    """Write the checkpoint of `step`, whole or not at all, and drop all but the newest `keep`; its folder."""
    final = checkpoint_dir(run_dir, step)
    part = temporary_path(final)
    part.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part / WEIGHTS)
        torch.save(state, part / STATE)
        digests = {name: sha256_file(part / name) for name in (WEIGHTS, STATE)}
        for name in digests:
            fsync_path(part / name)
        write_record(part / META, Meta(step, digests))
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
    for old in list(checkpoint_dirs(run_dir).values())[keep:]:
        shutil.rmtree(old)
    for stale in unfinished_checkpoints(run_dir):  # of killed saves: a run has one writer
        shutil.rmtree(stale, ignore_errors=True)
    return final


def read_meta(checkpoint: Path) -> Meta:
    """meta.json of a checkpoint; raises DamagedFile where it is none or anything else."""
    if meta := read_record(checkpoint / META, Meta):
        return meta
    raise DamagedFile(f"{META} is missing")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file has its recorded SHA-256."""
    try:
        digests = read_meta(checkpoint).sha256
    except DamagedFile as error:
        return str(error)
    for name, digest in digests.items():
        try:
            if sha256_file(checkpoint / name) != digest:
                return f"{name} does not have its recorded SHA-256"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def find_latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint, or None. Damaged ones are passed over with a warning."""
    for checkpoint in checkpoint_dirs(run_dir).values():
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        log.warning("skipping damaged checkpoint %s: %s", checkpoint, reason)
    return None


def load_state(checkpoint: Path) -> StateDict:
    """Everything of `state.pt`, on the CPU. Only tensors and plain values are unpickled."""
    return cast(StateDict, torch.load(checkpoint / STATE, map_location="cpu", weights_only=True))


def load_trained(run_dir: Path) -> tuple[VAE, Done]:
    """The finished model in eval mode on the CPU, and done.json; RunError unless both are whole."""
    done = read_done(run_dir)
    if done is None:
        raise RunError(f"{run_dir} is not trained to the end", "train it with `python jobs/train.py`")
    weights = checkpoint_dir(run_dir, done.step) / WEIGHTS
    if not weights.exists() or sha256_file(weights) != done.weights_sha256:
        raise RunError(
            f"the weights in {weights} are missing or damaged",
            f"delete {run_dir / DONE_FILE} and train again: it goes on from the last whole checkpoint",
        )
    tensors = load_file(weights)
    model = build_model(read_run(run_dir)).to(next(iter(tensors.values())).dtype)
    model.load_state_dict(tensors)
    return model.eval(), done
