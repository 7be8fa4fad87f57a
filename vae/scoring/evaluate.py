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
from vae.run_dir import DRAWS_FILE, FEATURES_DIR, SCORES_FILE, Done, figure_path
from vae.scoring import floors
from vae.scoring.classifier import NO_CLASSIFIERS, load_classifiers
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.generation import generation_scores
from vae.scoring.reconstruction import Pass, pass_through, reconstruction_scores, sampled_scores
from vae.scoring.resampling import Halves, Measured
from vae.scoring.score_cards import Draws, RunScores, ScoreCard
from vae.scoring.score_specs import health_warning
from vae.scoring.subject import SAMPLE_STREAM, Subject
from vae.study import Study, read_run
from vae.training.accelerator import RENDEZVOUS_TIME_LIMIT, check_world_size
from vae.training.checkpoint import load_trained
from vae.training.collectives import any_rank
from vae.training.data_loader import ImageSplit, load_patients, load_split, to_unit
from vae.training.metrics_log import peak_memory_gb
from vae.training.training_state import check_fingerprint

log = logging.getLogger(__name__)

GRID_IMAGES = 32
WORST_IMAGES = 10


def evaluate(run_dir: Path, study: Study) -> RunScores:
    """Score the run in `run_dir`: write figures/*.png, draws.json, and then scores.json, which is returned.

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
    halves = Halves(*load_patients(Path(config.data), "test"))
    classifiers, why_none = load_classifiers(run_dir.parent.parent, test.fingerprint, state.device)
    if any_rank(classifiers is None)[0]:  # they may come or go between two ranks' looks
        classifiers, why_none = None, why_none or NO_CLASSIFIERS
    facts = (config.seed, test, extractor, card, run_dir.parent / FEATURES_DIR, halves, classifiers, why_none)
    subject = Subject(run_dir.name, model.to(state.device), *facts)

    # score it, then draw, for with scores.json the run counts as scored
    mean_pass, result = pass_through(subject, is_sampled=False), None
    of_train = train, load_patients(Path(config.data), "train")[0]
    found = compute_scores(subject, mean_pass, of_train, study.scores == "full")
    if state.is_main_process:
        drawn = write_figures(run_dir, subject, mean_pass)
        result = run_scores(subject, done, study, found, time.monotonic() - started)
        if warning := health_warning(result.values):
            log.warning("%s: %s", run_dir.name, warning)
        write_record(run_dir / DRAWS_FILE, draws_of(subject, result, found))
        files = (run_dir / DRAWS_FILE, *drawn, *subject.features_used)
        note_scored(run_dir, result, files)
        write_record(run_dir / SCORES_FILE, result)
    final: RunScores = broadcast_object_list([result])[0]  # the others wait here
    return final


def compute_scores(
    subject: Subject, mean_pass: Pass, of_train: tuple[ImageSplit, np.ndarray], is_full: bool
) -> dict[str, Measured]:
    """The scores, on every rank, each of which must call it. `is_full`: also what takes long."""
    real = subject.real_features(subject.test, "test", np.arange(len(subject.test)))
    return {
        **reconstruction_scores(subject, real, mean_pass),
        **(sampled_scores(subject, real) if is_full else {}),
        **generation_scores(subject, real),
        **floors.floor_scores(subject, real, *of_train, floors.DRAWS if is_full else 1),
    }


def load_images(data: Path, fingerprint: str) -> tuple[ImageSplit, ImageSplit]:
    """Test and training images of the packed data; DataError where they are missing, others or too few."""
    test = load_split(data, "test")
    check_fingerprint(fingerprint, test.fingerprint)
    train = load_split(data, "train")
    if min(len(test), len(train)) < 2:
        counts = f"{len(test)} test and {len(train)} training images"
        raise DataError(f"{data} has {counts}; a Frechet distance needs at least 2 of each")
    return test, train


def run_scores(
    subject: Subject, done: Done, study: Study, found: dict[str, Measured], seconds: float
) -> RunScores:
    """What scores.json will hold."""
    state, extractor = PartialState(), subject.extractor
    return RunScores(
        extractor=extractor.name,
        extent=study.scores,
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
        scores={key: entry.score for key, entry in found.items()},
    )


def draws_of(subject: Subject, result: RunScores, found: dict[str, Measured]) -> Draws:
    """What draws.json will hold."""
    return Draws(
        data_fingerprint=result.data_fingerprint,
        checkpoint_sha256=result.checkpoint_sha256,
        extractor_sha256=result.extractor_sha256,
        to_whole=subject.halves.to_whole,
        of_each={key: list(entry.of_each) for key, entry in found.items() if entry.of_each},
        draws={key: _short(entry.draws) for key, entry in found.items() if entry.draws is not None},
    )


def _short(draws: np.ndarray) -> list[float]:
    """Seven digits: more than an interval needs, at half of the bytes."""
    return [float(f"{value:.7g}") for value in draws]


@torch.no_grad()
def write_figures(run_dir: Path, subject: Subject, mean_pass: Pass) -> list[Path]:
    """Draw the losses, the first 32 test images and their reconstructions, the worst ten, and 32 samples."""
    losses = figure_path(run_dir, "loss")
    paths = [losses] if figures.write_loss_curves(losses, {run_dir.name: read_metrics(run_dir)}) else []
    model, device = subject.model, subject.extractor.device
    originals = subject.test.take(np.arange(min(GRID_IMAGES, len(subject.test))))
    reconstructions = model.reconstruct(to_unit(originals.to(device), subject.dtype))
    grids = {"originals": originals, "reconstructions": to_8bit(reconstructions)}
    if model.can_sample:
        noise = subject.noise(len(originals), SAMPLE_STREAM).to(device, subject.dtype)
        grids["samples"] = to_8bit(model.sample(noise))
    for name, images in grids.items():
        paths.append(figure_path(run_dir, name))
        figures.write_grid(paths[-1], images[:, 0].cpu().numpy())
    paths.append(figure_path(run_dir, "worst"))
    worst = np.argsort(mean_pass.values["ssim"], kind="stable")[:WORST_IMAGES]
    figures.write_grid(paths[-1], beside_errors(subject, worst), columns=len(worst))
    return paths


def beside_errors(subject: Subject, indices: np.ndarray) -> np.ndarray:
    """Test images, then their reconstructions, then the absolute errors, uint8 [3 n, H, W]."""
    images = subject.test.take(indices)
    targets = to_unit(images.to(subject.extractor.device), subject.dtype)
    reconstructions = to_8bit(subject.model.reconstruct(targets)).cpu()
    errors = (images.int() - reconstructions.int()).abs().to(torch.uint8)
    return torch.cat((images, reconstructions, errors))[:, 0].numpy()
