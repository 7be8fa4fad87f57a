"""Score a finished run: load it, check it, score it, draw what it does, write scores.json."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data_prep.errors import DataError
from data_prep.records import write_record
from vae import figures
from vae.config import RunConfig
from vae.metrics import read_metrics
from vae.model import VAE
from vae.provenance import versions
from vae.run_dir import FEATURES_DIR, SCORES_FILE, figure_path
from vae.scoring.baselines import baseline_scores
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.feature_cache import real_features
from vae.scoring.generation import generation_scores, prior_noise
from vae.scoring.reconstruction import reconstruction_scores
from vae.scoring.score_cards import RunScores, ScoreCard
from vae.scoring.subject import Subject
from vae.study import Study, read_run
from vae.training.accelerator import RENDEZVOUS_TIME_LIMIT, check_world_size
from vae.training.checkpoint import load_trained
from vae.training.data_loader import ImageSplit, load_split, to_unit
from vae.training.metrics_log import peak_memory_gb
from vae.training.training_state import check_fingerprint

GRID_IMAGES = 32


def evaluate(run_dir: Path, study: Study) -> RunScores:
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

    # load the run and the images it was trained on, and check that they are
    model, done = load_trained(run_dir)
    config = read_run(run_dir)
    test, train = load_images(config, done.data_fingerprint)
    extractor = load_extractor(study, state.device)
    card = ScoreCard(split="test", checkpoint_sha256=done.weights_sha256, data_fingerprint=test.fingerprint)
    subject = Subject(run_dir.name, model.to(state.device), config.seed, test, extractor, card)

    # score it
    cache = run_dir.parent / FEATURES_DIR
    real = real_features(subject, test, "test", np.arange(len(test)), cache)
    scores = {
        **reconstruction_scores(subject, real),
        **generation_scores(subject, real),
        **baseline_scores(subject, real, train, cache),
    }
    # figures first: with scores.json the run counts as scored
    if state.is_main_process:
        figures.write_loss_curves(figure_path(run_dir, "loss"), {run_dir.name: read_metrics(run_dir)})
        write_grids(run_dir, model, test, config.seed)
    result = RunScores(
        extractor=study.extractor,
        label=extractor.label,
        extractor_sha256=extractor.weights_sha256,
        checkpoint_sha256=card.checkpoint_sha256,
        data_fingerprint=card.data_fingerprint,
        step=done.step,
        epoch=done.epoch,
        device=state.device.type,
        world_size=state.num_processes,
        seconds=round(time.monotonic() - started, 1),
        host_gb=round(peak_memory_gb(), 3),
        versions=versions(),
        scores=scores,
    )
    if state.is_main_process:
        write_record(run_dir / SCORES_FILE, result)
    final: RunScores = broadcast_object_list([result])[0]  # the others wait here
    return final


def load_images(config: RunConfig, fingerprint: str) -> tuple[ImageSplit, ImageSplit]:
    """The test and the training images.

    Raises:
        DataError: they are not the packed data with this fingerprint, or too few to score.
    """
    test = load_split(Path(config.data), "test")
    check_fingerprint(fingerprint, test.fingerprint)
    train = load_split(Path(config.data), "train")
    if min(len(test), len(train)) < 2:
        counts = f"{len(test)} test and {len(train)} training images"
        raise DataError(f"{config.data} has {counts}; a Frechet distance needs at least 2 of each")
    return test, train


@torch.no_grad()
def write_grids(run_dir: Path, model: VAE, test: ImageSplit, seed: int) -> None:
    """Write the first 32 test images, their reconstructions in the same order, and 32 samples as PNG."""
    count, device = min(GRID_IMAGES, len(test)), next(model.parameters()).device
    originals = test.take(np.arange(count))
    reconstructions = model.reconstruct(to_unit(originals.to(device)))
    grids = {"originals": originals, "reconstructions": to_8bit(reconstructions)}
    if model.can_sample:
        grids["samples"] = to_8bit(model.sample(prior_noise(model, seed, count).to(device)))
    for name, images in grids.items():
        figures.write_grid(figure_path(run_dir, name), images[:, 0].cpu().numpy())
