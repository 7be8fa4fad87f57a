"""Features of real images in a file: a study computes them once, for they are the same for every run."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data_prep.files import replacing
from vae.provenance import versions
from vae.scoring.extractors import Features
from vae.scoring.subject import Subject
from vae.training.data_loader import ImageSplit

log = logging.getLogger(__name__)


def real_features(
    subject: Subject, split: ImageSplit, name: str, indices: np.ndarray, folder: Path
) -> Features:
    """Features of some images of the split `name`, from the cache in `folder` if they are there."""

    def compute() -> Features:
        what = f"real images of the {name} split"
        return subject.collect(what, len(indices), lambda rows: split.take(indices[rows]))

    # the file's name stands for everything that the features depend on
    extractor = subject.extractor
    network = (extractor.name, extractor.weights_sha256, extractor.input)
    facts = (split.fingerprint, name, indices.tolist(), *network, sorted(versions().items()))
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return cached(folder / f"{key}.npz", compute)


def cached(path: Path, compute: Callable[[], Features]) -> Features:
    """The features in the file `path`, or those that `compute` gives, which are kept there.

    Rank 0 reads and writes; a damaged file is as good as none. Every rank must call it.
    """
    is_main = PartialState().is_main_process
    kept: Features | None = broadcast_object_list([_read(path) if is_main else None])[0]
    if kept is not None:
        return kept
    features = compute()
    if is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in features._asdict().items()})
    return features


def _read(path: Path) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Features(*(torch.from_numpy(file[name]) for name in Features._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged and will be made again: %s", path, error)
        return None
