"""A run under test: features of its images from all ranks, and of real images from a cache."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from msgspec.structs import replace
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data_prep.errors import DamagedFile, ToolkitError
from data_prep.files import fsync_path, temporary_path
from data_prep.progress import terminal_bar
from vae.model import VAE
from vae.provenance import versions
from vae.run_dir import FEATURES_DIR
from vae.scoring.classifier import Classifiers
from vae.scoring.extractors import Extractor, Features
from vae.scoring.resampling import Halves
from vae.scoring.score_cards import ScoreCard
from vae.training.checkpoint import check_header
from vae.training.data_loader import ImageSplit, mix, rank_slice

log = logging.getLogger(__name__)

# Images per forward pass: about 1 GB for Inception v3 on a CPU, and enough to fill a GPU.
BATCH_IMAGES = 32
LOG_EVERY_S = 30.0
# Streams of a run's seed, beside data_loader.ORDER_STREAM and data_loader.NOISE_STREAM.
SAMPLE_STREAM, LATENT_STREAM = 2, 3


@dataclass(frozen=True)
class Subject:
    """A trained run. Every rank must ask for the same scores of it; rank 0 alone gets them."""

    name: str
    model: VAE
    seed: int
    test: ImageSplit
    extractor: Extractor
    card: ScoreCard
    """What the cards of all its scores say: which split, weights and data."""
    cache: Path
    """Folder of the features of real images: computed once, the same for every run of the study, and copied
    from a study beside it that has them."""
    halves: Halves
    """Of the patients of the test images."""
    classifiers: Classifiers | None = None
    """Of the label, if there are any for these images."""
    why_no_classifiers: str = ""
    features_used: list[Path] = field(default_factory=list)
    """Files there that its scores rest on."""

    @property
    def feature_card(self) -> ScoreCard:
        """What the cards of scores on features say: which extractor, too."""
        network = self.extractor
        names = {"extractor": network.name, "extractor_sha256": network.weights_sha256}
        return replace(self.card, **names, label=network.label, input=network.input)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights: a run that was trained in double precision is scored in it."""
        return next(self.model.parameters()).dtype

    def noise(self, count: int, stream: int) -> Tensor:
        """Standard normal latents [count, *latent_shape], the same on every rank and device."""
        generator = torch.Generator().manual_seed(mix(self.seed, stream))
        return torch.randn((count, *self.model.latent_shape), generator=generator)

    def real_features(self, split: ImageSplit, name: str, indices: np.ndarray) -> Features:
        """Features of some images of the split `name`, from the cache if they are there and fit."""
        extractor = self.extractor
        network = [extractor.name, extractor.weights_sha256, extractor.input]
        network += filter(None, [extractor.arithmetic])
        facts = (split.fingerprint, name, indices.tolist(), *network, sorted(versions().items()))
        made_from = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        path = self.cache / f"{made_from[:32]}.safetensors"
        self.features_used.append(path)
        what, take = f"real images of the {name} split", lambda rows: split.take(indices[rows])
        return cached(path, made_from, len(indices), lambda: self.collect(what, len(indices), take))

    def collect(self, what: str, num_images: int, make_images: Callable[[slice], Tensor]) -> Features:
        """Features of images in their order, on every rank; each rank takes its share of the work.

        `make_images` gives uint8 [n, 1, H, W] of the rows asked for, at most BATCH_IMAGES at once. Shows rank
        0's images, called `what`, as a bar on a terminal, else as a line now and then.
        """
        state = PartialState()
        rows = rank_slice(num_images, state.process_index, state.num_processes)
        title, count = f"{self.name}: {what}", rows.stop - rows.start
        parts, logged_at = [], time.monotonic()
        with terminal_bar("images", is_hidden=not state.is_main_process) as bar:
            task = bar.add_task(title, total=count)
            for start in range(rows.start, rows.stop, BATCH_IMAGES):
                stop = min(start + BATCH_IMAGES, rows.stop)
                parts.append(self.extractor(make_images(slice(start, stop))))
                # show how far it is
                bar.advance(task, stop - start)
                is_due = stop == rows.stop or time.monotonic() - logged_at >= LOG_EVERY_S
                if state.is_main_process and bar.disable and is_due:
                    logged_at = time.monotonic()
                    log.info("%s: %d of %d images", title, stop - rows.start, count)
        # also where a rank has no images: every rank must take part
        return Features(*map(torch.cat, zip(*gather_object(parts), strict=True)))


def cached(path: Path, made_from: str, count: int, compute: Callable[[], Features]) -> Features:
    """Features of `count` images in a file, or those that `compute` gives, kept. Every rank calls it.

    A file counts only if it says that it was made from just that (a digest of all that the features depend
    on), and if its content has the digest in it; else it is made again, with a line in the log.
    """
    is_main = PartialState().is_main_process
    found = (find(path, made_from, count) or adopt(path, made_from, count)) if is_main else None
    kept: Features | None = broadcast_object_list([found])[0]
    if kept is not None:
        return kept
    features = compute()
    if is_main:
        features = keep(path, made_from, features)
    final: Features = broadcast_object_list([features])[0]  # perhaps another process was faster: then its own
    return final


def find(path: Path, made_from: str, count: int) -> Features | None:
    """The features in a file, if it is there and fits; if not, it is removed with a line in the log."""
    try:
        return read_features(path, made_from, count) if path.exists() else None
    except (OSError, SafetensorError, ToolkitError) as error:
        log.warning("%s does not fit and is made again: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def adopt(path: Path, made_from: str, count: int) -> Features | None:
    """A copy of the features that a study beside this one keeps, in a file of this one; None if none does.

    A copy, so that each study holds all that its scores rest on, whatever becomes of the other.
    """
    runs_dir = path.parent.parent.parent
    for name in runs_dir.glob(f"*/{FEATURES_DIR}/{path.name}"):
        with suppress(OSError, SafetensorError, ToolkitError):  # of no use, but not ours to remove
            features = read_features(name, made_from, count)
            log.info("features of real images as in %s", name)
            return keep(path, made_from, features)
    return None


def keep(path: Path, made_from: str, features: Features) -> Features:
    """Write features to a file, unless another run of the study was faster; returns what is in it then.

    So all runs of a study rest on the very numbers in the file, though GPUs round differently each time.
    """
    facts = {"made_from": made_from, "sha256": content_digest(features)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(path)
    try:
        part.write_bytes(in_order(save(features._asdict(), facts)))
        fsync_path(part)
        try:
            path.hardlink_to(part)  # unlike a renaming it fails where there is a file already
        except OSError:
            if (first := find(path, made_from, len(features.pool))) is not None:
                return first
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return features


def in_order(content: bytes) -> bytes:
    """A safetensors file whose header is sorted: else the same features made again are another file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def read_features(path: Path, made_from: str, count: int) -> Features:
    """The features in a file; raises DamagedFile, OSError or SafetensorError unless they are those wanted."""
    check_header(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
        if facts.get("made_from") != made_from:
            raise DamagedFile("it was made from something else")
        if {*file.keys()} != {*Features._fields}:
            raise DamagedFile(f"it holds {', '.join(file.keys())}")
        features = Features(*map(file.get_tensor, Features._fields))
    if any(tensor.dtype != torch.float32 or tensor.shape[:1] != (count,) for tensor in features):
        raise DamagedFile(f"it does not hold the features of {count} images")
    if content_digest(features) != facts.get("sha256"):
        raise DamagedFile("its content does not have its recorded SHA-256")
    return features


def content_digest(features: Features) -> str:
    """SHA-256 of the numbers and of how many there are to an image."""
    digest = hashlib.sha256(repr([list(tensor.shape) for tensor in features]).encode())
    for tensor in features:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
