"""Checkpoints that outlive crashes: written aside, checksummed, renamed; the newest whole one wins.

checkpoints/step_00000120/
    model.safetensors   weights
    state.pt            optimiser, gradient scaler, random state, position (read with weights_only=True)
    meta.json           step and the SHA-256 of both
"""

import hashlib
import io
import logging
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.errors import DamagedFile, RunError, ToolkitError
from data_prep.files import BLOCK_BYTES, fsync_path, sha256_file, temporary_path
from data_prep.json_records import Record, read_record, write_record
from vae.digests import FileDigest, Files
from vae.model import VAE, build_model
from vae.run_dir import (
    CHECKPOINTS_DIR,
    DONE_FILE,
    Done,
    checkpoint_dir,
    checkpoint_dirs,
    read_done,
    unfinished_checkpoints,
    weights_name,
)
from vae.run_dir import META_FILE as META
from vae.run_dir import STATE_FILE as STATE
from vae.run_dir import WEIGHTS_FILE as WEIGHTS
from vae.study import read_run

log = logging.getLogger(__name__)

# A header of ours takes a few kB; safetensors itself would read 100 MB.
MAX_HEADER_BYTES = 1 << 20
NO_ROOM = "make room there and run the same command again; it goes on from the last whole checkpoint"
REMOVE_IT = "remove that checkpoint: training goes on from the one before it"
# So much of what another library says about a file that is not ours.
MAX_WORDS_CHARS = 200

# Optimiser, gradient scaler, random state and position, as torch saves them.
StateDict = dict[str, Any]


class Position(Record, frozen=True):
    """The part of a state that says where the training is."""

    step: int
    epoch_sums: tuple[float, float]
    """(bce, kl) of the epoch so far."""
    data_fingerprint: str


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
        with ThreadPoolExecutor(1) as pool:  # two cores hash, and steps beside them lose half the time
            weights_sha256 = pool.submit(save_weights, weights, part / WEIGHTS)
            state_sha256 = save_state(state, part / STATE)
        write_record(part / META, Meta(step, {WEIGHTS: weights_sha256.result(), STATE: state_sha256}))
        if final.exists():  # damaged, or it would have been resumed from
            shutil.rmtree(final)
        part.rename(final)
        fsync_path(final.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, in three writers' words
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(
            f"cannot save checkpoint {final}: {error}",
            NO_ROOM,
        ) from error
    for old in list(checkpoint_dirs(run_dir).values())[keep:]:
        shutil.rmtree(old)
    for stale in unfinished_checkpoints(run_dir):  # of killed saves: a run has one writer
        shutil.rmtree(stale, ignore_errors=True)
    return final


class HashedFile(io.BufferedWriter):
    """A new file that is hashed while it is written; closed, it is on disk. Other threads go on meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes | memoryview, /) -> int:  # type: ignore[override]  # torch writes these
        view = memoryview(content).cast("B")
        try:
            for start in range(0, len(view), BLOCK_BYTES):
                block = view[start : start + BLOCK_BYTES]
                self.sha256.update(block)
                super().write(block)  # from the processor's cache
        except OSError as error:
            self.failure = error
            raise
        return len(view)

    def close(self) -> None:
        try:
            if not self.closed:
                self.flush()
                os.fsync(self.fileno())
        finally:
            super().close()


def save_weights(weights: dict[str, Tensor], path: Path) -> str:
    """Write weights as safetensors, durably; the SHA-256 of the file."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    fsync_path(path)
    return sha256_file(path)


def save_state(state: StateDict, path: Path) -> str:
    """Have torch save a state, durably; the SHA-256 of the file."""
    if hasattr(torch.serialization, "set_crc32_options"):  # from torch 2.6 on, and for this thread only
        # it would take longer than all the rest, and nothing reads it: the file has its SHA-256
        torch.serialization.set_crc32_options(False)
    with HashedFile(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # in its words, a file has not the length that it should have
            raise file.failure or error from error
    return file.sha256.hexdigest()


def read_meta(checkpoint: Path) -> Meta:
    """meta.json of a checkpoint; raises DamagedFile where it is none or anything else."""
    meta = read_record(checkpoint / META, Meta)
    if meta is None:
        raise DamagedFile(f"{META} is missing")
    if checkpoint.name != checkpoint_dir(Path(), meta.step).name or {*meta.sha256} != {WEIGHTS, STATE}:
        raise DamagedFile(f"{META} belongs to another checkpoint")
    return meta


def digests(checkpoint: Path) -> Files:
    """Sizes and digests of the files of a whole checkpoint, by their path in the run's folder."""
    known = read_meta(checkpoint).sha256
    files = {name: FileDigest((checkpoint / name).stat().st_size, known[name]) for name in known}
    files[META] = FileDigest.of(checkpoint / META)
    return {f"{CHECKPOINTS_DIR}/{checkpoint.name}/{name}": digest for name, digest in files.items()}


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if all has its recorded SHA-256 and can be gone on from."""
    try:
        meta = read_meta(checkpoint)
        with ThreadPoolExecutor() as pool:  # hashing one file leaves a core to the other
            found = pool.map(lambda name: sha256_file(checkpoint / name), meta.sha256)
            for (name, digest), own in zip(meta.sha256.items(), found, strict=True):
                if own != digest:
                    return f"{name} does not have its recorded SHA-256"
        check_header(checkpoint / WEIGHTS)
    except ToolkitError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def check_header(weights: Path) -> None:
    """Raise DamagedFile unless a safetensors file begins with a short header; it says itself how long."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, weights.stat().st_size - 8):
        raise DamagedFile(f"{weights.name} has a header of {length:,} bytes; allowed: {MAX_HEADER_BYTES:,}")


def find_latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint, or None. Damaged ones are passed over with a warning."""
    for checkpoint in checkpoint_dirs(run_dir).values():
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        log.warning("skipping damaged checkpoint %s: %s", checkpoint, reason)
    return None


def read_state(checkpoint: Path) -> StateDict:
    """As `load_state`, of a checkpoint that a training can go on from; RunError if it is not one of ours."""
    path = checkpoint / STATE
    try:
        check_archive(path)
        # the tensors stay in the file
        check_state(torch.load(path, map_location="cpu", weights_only=True, mmap=True), checkpoint)
        return load_state(checkpoint)
    except OSError:
        raise
    except Exception as error:  # the unpickler and the archive raise many kinds
        problem = f"{path} does not hold a state of this training: {first_words(error)}"
        raise RunError(problem, REMOVE_IT) from error


def check_archive(path: Path) -> None:
    """Raise DamagedFile if an archive is compressed, as ours never is: it could be a bomb."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise DamagedFile("it is compressed")


def check_state(state: object, checkpoint: Path) -> None:
    """Raise an error that says why if `state` is not what the training saved in that folder."""
    if not isinstance(state, dict):
        raise DamagedFile(f"it holds a {type(state).__name__}")
    position = msgspec.convert({name: state.get(name) for name in Position.__struct_fields__}, Position)
    if checkpoint_dir(Path(), position.step).name != checkpoint.name:
        raise DamagedFile(f"it is of step {position.step}")
    rng, present = state.get("rng"), torch.get_rng_state()
    if not (isinstance(rng, Tensor) and (rng.dtype, rng.shape) == (present.dtype, present.shape)):
        raise DamagedFile("it has no random state")
    for name in ("optimizer", "scaler"):
        if not isinstance(state.get(name), dict) and (name == "optimizer" or state.get(name) is not None):
            raise DamagedFile(f"its {name} is a {type(state.get(name)).__name__}")


def load_state(checkpoint: Path) -> StateDict:
    """Everything of `state.pt`, on the CPU. Only tensors and plain values are unpickled."""
    return cast(StateDict, torch.load(checkpoint / STATE, map_location="cpu", weights_only=True))


def load_weights(weights: Path, model: VAE, keeps_precision: bool = False) -> None:
    """Put the weights in a file into a model, which may take their precision; RunError if they do not fit."""
    try:
        check_header(weights)
        tensors = load_file(weights)
        if keeps_precision and {tensor.dtype for tensor in tensors.values()} == {torch.float64}:
            model.double()
        model.load_state_dict(tensors)
    except (ToolkitError, RuntimeError, SafetensorError, ValueError) as error:
        raise RunError(f"{weights} holds the weights of another model: {first_words(error)}") from error


def first_words(error: Exception) -> str:
    """The beginning of another library's message, on one line."""
    words = " ".join(str(error).split())
    return words if len(words) <= MAX_WORDS_CHARS else words[: MAX_WORDS_CHARS - 3] + "..."


def load_trained(run_dir: Path) -> tuple[VAE, Done]:
    """The finished model in eval mode on the CPU, and done.json; RunError unless both are whole."""
    done = read_done(run_dir)
    if done is None:
        raise RunError(f"{run_dir} is not trained to the end", "train it with `python jobs/train.py`")
    weights = run_dir / weights_name(done)
    if not weights.exists() or sha256_file(weights) != done.weights_sha256:
        raise RunError(
            f"the weights in {weights} are missing or damaged",
            f"delete {run_dir / DONE_FILE} and train again: it goes on from the last whole checkpoint",
        )
    model = build_model(read_run(run_dir))
    load_weights(weights, model, keeps_precision=True)
    return model.eval(), done
