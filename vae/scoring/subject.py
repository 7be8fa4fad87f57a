"""A run under test: its model, the test images, the extractor, and features of images over all ranks."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vae.model import VAE
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

    def collect(self, what: str, num_images: int, make_images: Callable[[slice], Tensor]) -> Features:
        """Features of images in their order, on every rank; each rank takes its share of the work.

        Shows this rank's images, called `what`, as a bar on a terminal, else as a line now and then.

        Args:
            make_images: uint8 [n, 1, H, W] of the rows asked for, at most BATCH_IMAGES at once.
        """
        state = PartialState()
        rows = rank_slice(num_images, state.process_index, state.num_processes)
        title, count = f"{self.name}: {what}", rows.stop - rows.start
        has_bar = state.is_main_process and sys.stderr.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
        parts, logged_at = [], time.monotonic()
        with Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not has_bar
        ) as bar:
            task = bar.add_task(title, total=count)
            for start in range(rows.start, rows.stop, BATCH_IMAGES):
                stop = min(start + BATCH_IMAGES, rows.stop)
                parts.append(self.extractor(make_images(slice(start, stop))))
                # show how far it is
                bar.advance(task, stop - start)
                is_due = stop == rows.stop or time.monotonic() - logged_at >= LOG_EVERY_S
                if state.is_main_process and not has_bar and is_due:
                    logged_at = time.monotonic()
                    log.info("%s: %d of %d images", title, stop - rows.start, count)
        # also where a rank has no images: every rank must take part
        probabilities = gather_object([part.probabilities for part in parts])
        return Features(torch.cat(probabilities), torch.cat(gather_object([part.pool for part in parts])))
