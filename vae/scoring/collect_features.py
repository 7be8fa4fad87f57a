"""Features of many images: each rank takes its share, batch by batch, and then every rank has them all."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vae.scoring.extractors import Extractor, Features
from vae.training.data_loader import rank_slice

log = logging.getLogger(__name__)

# Images per forward pass: about 1 GB for Inception v3 on a CPU, and enough to fill a GPU.
BATCH_IMAGES = 32
LOG_EVERY_S = 30.0


def is_main_rank() -> bool:
    """Whether this is the process that computes scores from features, and writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def own_rows(num_images: int) -> slice:
    """The images that belong to this rank; together the ranks have each image exactly once."""
    if not torch.distributed.is_initialized():
        return slice(0, num_images)
    return rank_slice(num_images, torch.distributed.get_rank(), torch.distributed.get_world_size())


def collect_features(
    extractor: Extractor, title: str, num_images: int, make_images: Callable[[slice], Tensor]
) -> Features:
    """All ranks' features on every rank, in the order of the images. Every rank must call it.

    Shows the images of this rank as a bar on a terminal, else as a line now and then; the others do as many
    at the same time.

    Args:
        make_images: uint8 [n, 1, H, W] of the rows asked for, at most BATCH_IMAGES at once.
    """
    rows = own_rows(num_images)
    count, has_bar = rows.stop - rows.start, is_main_rank() and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
    parts, logged_at = [], time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not has_bar) as bar:
        task = bar.add_task(title, total=count)
        for start in range(rows.start, rows.stop, BATCH_IMAGES):
            stop = min(start + BATCH_IMAGES, rows.stop)
            parts.append(extractor(make_images(slice(start, stop))))
            # show how far it is
            bar.advance(task, stop - start)
            is_due = stop == rows.stop or time.monotonic() - logged_at >= LOG_EVERY_S
            if is_main_rank() and not has_bar and is_due:
                logged_at = time.monotonic()
                log.info("%s: %d of %d images", title, stop - rows.start, count)
    return gather(parts)


def gather(parts: list[Features]) -> Features:
    """The parts of all ranks joined, on every rank, in the order of the images."""
    columns = [[part[i] for part in parts] for i in range(2)]
    return Features(*(torch.cat(gather_object(column)) for column in columns))
