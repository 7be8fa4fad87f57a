"""A run under test: features of its images from all ranks, and of real images from a cache."""

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from msgspec.structs import replace
from torch import Tensor

from data_prep.files import replacing
from data_prep.progress import terminal_bar
from vae.model import VAE
from vae.provenance import versions
from vae.scoring.extractors import Extractor, Features
from vae.scoring.score_cards import ScoreCard
from vae.training.data_loader import ImageSplit, rank_slice

log = logging.getLogger(__name__)

# Images per forward pass: about 1 GB for Inception v3 on a CPU, and enough to fill a GPU.
BATCH_IMAGES = 32
LOG_EVERY_S = 30.0


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
    """Folder of the features of real images: a study computes them once, the same for every run."""

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

    def real_features(self, split: ImageSplit, name: str, indices: np.ndarray) -> Features:
        """Features of some images of the split `name`, from the cache if they are there."""
        # the file's name stands for everything that the features depend on
        network = (self.extractor.name, self.extractor.weights_sha256, self.extractor.input)
        facts = (split.fingerprint, name, indices.tolist(), *network, sorted(versions().items()))
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        what, take = f"real images of the {name} split", lambda rows: split.take(indices[rows])
        return cached(self.cache / f"{key}.npz", lambda: self.collect(what, len(indices), take))

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


def cached(path: Path, compute: Callable[[], Features]) -> Features:
    """Features in the file `path`, or those that `compute` gives and rank 0 keeps. Every rank calls it."""
    is_main, features = PartialState().is_main_process, None
    try:
        if is_main and path.exists():
            with np.load(path, allow_pickle=False) as file:
                features = Features(*(torch.from_numpy(file[name]) for name in Features._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged and will be made again: %s", path, error)
    kept: Features | None = broadcast_object_list([features])[0]
    if kept is not None:
        return kept
    features = compute()
    if is_main:
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in features._asdict().items()})
    return features
