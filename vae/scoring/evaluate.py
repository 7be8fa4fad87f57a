"""Score a finished run: load it, check it, score it, draw what it does, write scores.json."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data_prep.errors import DataError
from data_prep.json_records import write_record
from vae import figures
from vae.allocator import keep_freed_memory
from vae.digests import note_scored
from vae.metrics import read_metrics
from vae.provenance import versions
from vae.run_dir import FEATURES_DIR, SCORES_FILE, Done, figure_path
from vae.scoring.comparisons import compute_scores, prior_noise
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.score_cards import RunScores, Score, ScoreCard
from vae.scoring.subject import Subject
from vae.study import Study, read_run
from vae.training.accelerator import RENDEZVOUS_TIME_LIMIT, check_world_size
from vae.training.checkpoint import load_trained
from vae.training.data_loader import ImageSplit, load_split, to_unit
from vae.training.metrics_log import peak_memory_gb
from vae.training.training_state import check_fingerprint

log = logging.getLogger(__name__)

GRID_IMAGES = 32


def evaluate(run_dir: Path, study: Study) -> RunScores:
    """Score the run in `run_dir`; writes figures/*.png and then scores.json, and returns what is in it.

    Call it in one process per rank, as `trainer.train`, or in one process without ranks. Each rank takes its
    own images and every image counts once, so the number of ranks does not change the scores.
    Raises RunError where the run is not complete, its weights are damaged or give no images; DataError where
    images are missing, damaged, others or too few; WeightsError as `load_extractor`.
    """
    started = time.monotonic()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=RENDEZVOUS_TIME_LIMIT)
    check_world_size(state)

    # load the run and the images it was trained on
    model, done = load_trained(run_dir)
    config = read_run(run_dir)
    test, train = load_images(Path(config.data), done.data_fingerprint)
    extractor = load_extractor(study, state.device)
    if state.device.type == "cpu":
        log.info("scoring on a CPU: %s", keep_freed_memory())
    card = ScoreCard(split="test", checkpoint_sha256=done.weights_sha256, data_fingerprint=test.fingerprint)
    cache = run_dir.parent / FEATURES_DIR
    subject = Subject(run_dir.name, model.to(state.device), config.seed, test, extractor, card, cache)

    # score it, then draw, for with scores.json the run counts as scored
    scores, result = compute_scores(subject, train), None
    if state.is_main_process:
        drawn = write_figures(run_dir, subject)
        result = run_scores(subject, done, scores, time.monotonic() - started)
        note_scored(run_dir, result, (*drawn, *subject.features_used))
        write_record(run_dir / SCORES_FILE, result)
    final: RunScores = broadcast_object_list([result])[0]  # the others wait here
    return final


def load_images(data: Path, fingerprint: str) -> tuple[ImageSplit, ImageSplit]:
    """Test and training images of the packed data; DataError where they are missing, others or too few."""
    test = load_split(data, "test")
    check_fingerprint(fingerprint, test.fingerprint)
    train = load_split(data, "train")
    if min(len(test), len(train)) < 2:
        counts = f"{len(test)} test and {len(train)} training images"
        raise DataError(f"{data} has {counts}; a Frechet distance needs at least 2 of each")
    return test, train


def run_scores(subject: Subject, done: Done, scores: dict[str, Score], seconds: float) -> RunScores:
    """What scores.json will hold."""
    state, extractor = PartialState(), subject.extractor
    return RunScores(
        extractor=extractor.name,
        label=extractor.label,
        extractor_sha256=extractor.weights_sha256,
        checkpoint_sha256=done.weights_sha256,
        data_fingerprint=done.data_fingerprint,
        step=done.step,
        epoch=done.epoch,
        device=state.device.type,
        world_size=state.num_processes,
        seconds=round(seconds, 1),
        host_gb=round(peak_memory_gb(), 3),
        versions=versions(),
        scores=scores,
    )


@torch.no_grad()
def write_figures(run_dir: Path, subject: Subject) -> list[Path]:
    """Draw the losses, the first 32 test images, their reconstructions in the same order, and 32 samples."""
    losses = figure_path(run_dir, "loss")
    paths = [losses] if figures.write_loss_curves(losses, {run_dir.name: read_metrics(run_dir)}) else []
    model, device = subject.model, subject.extractor.device
    originals = subject.test.take(np.arange(min(GRID_IMAGES, len(subject.test))))
    reconstructions = model.reconstruct(to_unit(originals.to(device), subject.dtype))
    grids = {"originals": originals, "reconstructions": to_8bit(reconstructions)}
    if model.can_sample:
        noise = prior_noise(model, subject.seed, len(originals)).to(device, subject.dtype)
        grids["samples"] = to_8bit(model.sample(noise))
    for name, images in grids.items():
        paths.append(figure_path(run_dir, name))
        figures.write_grid(paths[-1], images[:, 0].cpu().numpy())
    return paths
