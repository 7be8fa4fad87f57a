"""Features of all ranks together, and a cache of them for every run of a study."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from data_prep.files import replacing
from vae.scoring.extractors import BATCH_IMAGES, Features, log
from vae.training.data_loader import rank_slice


def own_rows(num_images: int) -> slice:
    """The images that belong to this rank; together the ranks have each image exactly once."""
    if not torch.distributed.is_initialized():
        return slice(0, num_images)
    return rank_slice(num_images, torch.distributed.get_rank(), torch.distributed.get_world_size())


def own_batches(num_images: int) -> list[slice]:
    """This rank's images in slices of at most BATCH_IMAGES."""
    rows = own_rows(num_images)
    return [
        slice(start, min(start + BATCH_IMAGES, rows.stop))
        for start in range(rows.start, rows.stop, BATCH_IMAGES)
    ]


def gather(parts: list[Features]) -> Features:
    """All ranks' features on every rank, in the order of the images. Every rank must call it."""
    columns = [[part[i] for part in parts] for i in range(2)]
    return Features(*(torch.cat(gather_object(column)) for column in columns))


def cached(path: Path, compute: Callable[[], Features]) -> Features:
    """The features in the file `path`, or those that `compute` gives, which are kept there.

    Rank 0 reads and writes; a damaged file is as good as none. Every rank must call it.
    """
    found = broadcast_object_list([_read(path) if _is_main() else None])[0]
    if found is not None:
        return found
    features = compute()
    if _is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in features._asdict().items()})
    return features


def cache_key(*facts: object) -> str:
    """A file name that stands for everything the features depend on."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32] + ".npz"


def _is_main() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _read(path: Path) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Features(*(torch.from_numpy(file[name]) for name in Features._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged and will be made again: %s", path, error)
        return None
