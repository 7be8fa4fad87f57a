"""Score a finished run: reconstructions of the test images, samples from the prior, and baselines.

rfid_paper, rfid_2048     Frechet distance of the reconstructions to the test images they were made from
gfid_paper, gfid_2048     of as many samples from the prior to the test images
floor_paper, floor_2048   of as many training images to the test images: what a perfect sampler could reach
is_reconstructions, is_samples, is_real   Inception scores; that of the test images is the yardstick
ssim, psnr, bce, kl       means over the test images of what each reconstruction loses
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from ignite.metrics import PSNR, SSIM
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from data_prep.errors import DataError
from data_prep.files import write_json
from vae import figures
from vae.config import RunConfig
from vae.losses import bce_per_image, kl_per_image
from vae.metrics import read_metrics
from vae.model import NO_SAMPLES, VAE
from vae.provenance import versions
from vae.scoring.extractors import Extractor, Features, load_extractor, to_8bit
from vae.scoring.feature_cache import cache_key, cached, gather, own_batches
from vae.scoring.score_cards import (
    IGNITE,
    Score,
    compute_alone,
    frechet_scores,
    inception_scores,
    no_score,
    score,
)
from vae.study import SCORES_FILE, Study, read_run
from vae.training.accelerator import RENDEZVOUS_TIME_LIMIT, check_world_size
from vae.training.checkpoint import load_trained
from vae.training.collectives import reduce_sum
from vae.training.data_loader import ImageSplit, load_split, mix, to_unit
from vae.training.learner import check_fingerprint
from vae.training.metrics_log import peak_memory_gb

log = logging.getLogger(__name__)

SAMPLE_STREAM = 2  # beside data.ORDER_STREAM and data.NOISE_STREAM
FLOOR_SEED = 0  # the same training images for every run of a study
GRID_IMAGES = 32
SAY_EVERY_S = 30.0


def evaluate(run_dir: Path, study: Study) -> dict[str, Any]:
    """Score the run in `run_dir`; writes figures/*.png and then scores.json, and returns what is in it.

    Call it in one process per rank, as `trainer.train`, or in one process without ranks. Each rank takes its
    own images and every image counts once, so the number of ranks does not change the scores.

    Raises:
        RunError: the run is not complete, or its weights are damaged or give no images.
        DataError: the data are missing, damaged, not the ones the run was trained on, or too few to score.
        WeightsError: the extractor's weights are missing, truncated or unknown.
    """
    started = time.monotonic()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=RENDEZVOUS_TIME_LIMIT)
    check_world_size(state)
    model, done = load_trained(run_dir)
    config = read_run(run_dir)
    test = load_split(Path(config.data), "test")
    check_fingerprint(done["data_fingerprint"], test.fingerprint)
    train = load_split(Path(config.data), "train")
    if min(len(test), len(train)) < 2:
        counts = f"{len(test)} test and {len(train)} training images"
        raise DataError(f"{config.data} has {counts}; a Frechet distance needs at least 2 of each")

    evaluator = Evaluator(
        model=model.to(state.device),
        config=config,
        test=test,
        extractor=load_extractor(study, state.device),
        cache=run_dir.parent / ".features",
        name=run_dir.name,
        is_main=state.is_main_process,
        facts={"checkpoint_sha256": done["weights_sha256"], "data_fingerprint": test.fingerprint},
    )
    scores = {**evaluator.reconstructions(), **evaluator.samples(), **evaluator.baselines(train)}
    if state.is_main_process:
        figures.write_loss_curves(run_dir / "figures" / "loss.png", {run_dir.name: read_metrics(run_dir)})
        write_grids(run_dir, model, test, config.seed)
    result = {
        "extractor": study.extractor,
        "label": evaluator.extractor.label,
        "extractor_sha256": evaluator.extractor.weights_sha256,
        **evaluator.facts,
        "step": done["step"],
        "epoch": done["epoch"],
        "device": state.device.type,
        "world_size": state.num_processes,
        "seconds": round(time.monotonic() - started, 1),
        "host_gb": round(peak_memory_gb(), 3),
        "versions": versions(),
        "scores": scores,
    }
    if state.is_main_process:
        write_json(run_dir / SCORES_FILE, result)
    return broadcast_object_list([result])[0]  # the others wait here


@dataclass
class Evaluator:
    """A finished model, the test images, and the extractor that compares what comes out with what went in.

    Every rank must call its methods, for each scores its part of the images; rank 0 gets the scores.
    """

    model: VAE
    config: RunConfig
    test: ImageSplit
    extractor: Extractor
    cache: Path
    name: str
    is_main: bool
    facts: dict[str, Any]
    """What every card says beside its own: which weights and data."""
    real: Features = field(init=False)
    """Of all test images, in order."""

    def __post_init__(self) -> None:
        self.real = self._real_features(self.test, "test", np.arange(len(self.test)))

    def reconstructions(self) -> dict[str, Score]:
        """rfid_*, is_reconstructions and the paired scores, from one pass over the test images."""
        parts, sums = [], torch.zeros(4, dtype=torch.float64, device=self.extractor.device)
        metrics = SSIM(data_range=1.0), PSNR(data_range=1.0)
        with self._advancing("reconstructions", len(self.test)) as advance:
            for rows in own_batches(len(self.test)):
                targets = self._to_model(self.test.take(np.arange(rows.start, rows.stop)))
                with torch.inference_mode():
                    output = self.model(targets)
                images = torch.sigmoid(output.logits.float()).to(targets.dtype)
                parts.append(self.extractor(to_8bit(images)))
                sums[0] += bce_per_image(output.logits, targets).sum()
                sums[1] += kl_per_image(output.mean, output.log_variance).sum()
                for number, metric in enumerate(metrics, start=2):
                    metric.reset()
                    metric.update((images.cpu(), targets.cpu()))
                    sums[number] += compute_alone(metric) * len(images)
                advance(len(images))
        features = gather(parts)
        bce, kl, ssim, psnr = (reduce_sum(sums) / len(self.test)).tolist()
        if not self.is_main:
            return {}
        fakes = {"images": "reconstructions of the test images", "latents": "mean of q(z|x)"}
        card = {"split": "test", "n": len(self.test), **fakes, **self.facts}
        scores = {
            **frechet_scores("rfid", self.real, features, **self._card(**fakes)),
            **inception_scores("reconstructions", features, **self._card(**fakes)),
            "ssim": score(ssim, "", computed_by=f"{IGNITE} SSIM, 11 px Gaussian window", **card),
            "psnr": score(psnr, "dB", computed_by=f"{IGNITE} PSNR, mean over images", **card),
            "bce": score(bce, "nats/image", computed_by="binary cross-entropy summed over pixels", **card),
        }
        if self.model.can_sample:
            scores["kl"] = score(kl, "nats/image", computed_by="KL divergence from N(0, I)", **card)
        else:
            scores["kl"] = no_score("the direct variant has no latent distribution", **card)
        return scores

    def samples(self) -> dict[str, Score]:
        """gfid_* and is_samples of as many samples as there are test images, or why there are none."""
        if not self.model.can_sample:
            card = self._card(images="samples from the prior")
            return {name: no_score(NO_SAMPLES, **card) for name in ("gfid_paper", "gfid_2048", "is_samples")}
        noise = prior_noise(self.model, self.config.seed, len(self.test))
        parts = []
        with self._advancing("samples", len(noise)) as advance:
            for rows in own_batches(len(noise)):
                images = self.model.sample(noise[rows].to(self.extractor.device, self._dtype))
                parts.append(self.extractor(to_8bit(images)))
                advance(len(images))
        features = gather(parts)
        if not self.is_main:
            return {}
        card = self._card(images="samples from the prior N(0, I)", noise_seed=self.config.seed)
        return {
            **frechet_scores("gfid", self.real, features, **card),
            **inception_scores("samples", features, **card),
        }

    def baselines(self, train: ImageSplit) -> dict[str, Score]:
        """floor_* of training images against as many test images, and is_real of the test images."""
        count = min(len(train), len(self.test))
        chosen = np.sort(np.random.default_rng(FLOOR_SEED).permutation(len(train))[:count])
        features = self._real_features(train, "train", chosen)
        if not self.is_main:
            return {}
        real = Features(*(tensor[:count] for tensor in self.real))
        card = self._card(images="real images of the train split, in the train split's balance of classes")
        return {
            **frechet_scores("floor", real, features, **card),
            **inception_scores("real", self.real, **self._card(images="real images of the test split")),
        }

    def _card(self, **facts: Any) -> dict[str, Any]:
        """What the card of a score on features says beside its own."""
        extractor = self.extractor
        names = {"extractor": extractor.name, "extractor_sha256": extractor.weights_sha256}
        label = {"label": extractor.label} if extractor.label else {}
        return {"split": "test", **facts, **names, **label, "input": extractor.input, **self.facts}

    def _real_features(self, split: ImageSplit, name: str, indices: np.ndarray) -> Features:
        """Features of real images; a study makes them once, for they are the same for every run."""

        def compute() -> Features:
            parts = []
            with self._advancing(f"real images of the {name} split", len(indices)) as advance:
                for rows in own_batches(len(indices)):
                    parts.append(self.extractor(split.take(indices[rows])))
                    advance(rows.stop - rows.start)
            return gather(parts)

        network = (self.extractor.name, self.extractor.weights_sha256, self.extractor.input)
        key = cache_key(split.fingerprint, name, indices.tolist(), *network, sorted(versions().items()))
        return cached(self.cache / key, compute)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _to_model(self, images: Tensor) -> Tensor:
        return to_unit(images.to(self.extractor.device), self._dtype)

    @contextmanager
    def _advancing(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A function to call with the images done: moves a bar on a terminal, else says so now and then.

        Counts the images of this rank; the others do as many at the same time.
        """
        total = sum(rows.stop - rows.start for rows in own_batches(total))
        done, said = 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
        has_bar = self.is_main and sys.stderr.isatty()
        with Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not has_bar
        ) as bar:
            task = bar.add_task(f"{self.name}: {what}", total=total)

            def advance(count: int) -> None:
                nonlocal done, said
                done += count
                bar.advance(task, count)
                is_due = done == total or time.monotonic() - said >= SAY_EVERY_S
                if self.is_main and not has_bar and is_due:
                    said = time.monotonic()
                    log.info("%s: %s: %d of %d images", self.name, what, done, total)

            yield advance


def prior_noise(model: VAE, seed: int, count: int) -> Tensor:
    """Standard normal latents [count, *latent_shape], the same on every rank and device."""
    generator = torch.Generator().manual_seed(mix(seed, SAMPLE_STREAM))
    return torch.randn((count, *model.latent_shape), generator=generator)


@torch.no_grad()
def write_grids(run_dir: Path, model: VAE, test: ImageSplit, seed: int) -> None:
    """Write the first 32 test images, their reconstructions in the same order, and 32 samples as PNG."""
    parameter = next(model.parameters())
    count = min(GRID_IMAGES, len(test))
    originals = test.take(np.arange(count))
    targets = to_unit(originals.to(parameter.device), parameter.dtype)
    grids = {"originals": originals, "reconstructions": to_8bit(model.reconstruct(targets))}
    if model.can_sample:
        grids["samples"] = to_8bit(model.sample(prior_noise(model, seed, count).to(parameter)))
    for name, images in grids.items():
        figures.write_grid(run_dir / "figures" / f"{name}.png", images[:, 0].cpu().numpy())
