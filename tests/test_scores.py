"""Scores of really trained tiny runs, against what can be computed from their images alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.metrics import PSNR, SSIM
from PIL import Image
from tiny import SIZE_PX, make_run, make_shards, run_ranks

from data_prep.errors import DataError, RunError, WeightsError
from vae.losses import bce_per_image, kl_per_image
from vae.scoring.distances import frechet_distance, inception_score
from vae.scoring.evaluate import evaluate, prior_noise
from vae.scoring.extractors import load_extractor, to_8bit
from vae.study import SCORES_FILE, Study, is_scored, prepare_study, read_study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, to_unit
from vae.training.trainer import train

NAMES = {
    *("rfid_paper", "rfid_2048", "is_reconstructions", "ssim", "psnr", "bce", "kl"),
    *("gfid_paper", "gfid_2048", "is_samples", "floor_paper", "floor_2048", "is_real"),
}
NUM_TEST = 13


def scores_of(run_dir: Path) -> dict:
    return json.loads((run_dir / SCORES_FILE).read_text())


def values_of(run_dir: Path) -> dict[str, float | None]:
    return {name: entry["value"] for name, entry in scores_of(run_dir)["scores"].items()}


def test_every_score_is_there_with_its_protocol(scored_study: Path) -> None:
    result = scores_of(scored_study / "linear-s0")
    done = json.loads((scored_study / "linear-s0" / "done.json").read_text())
    assert set(result["scores"]) == NAMES
    assert (result["extractor"], result["label"]) == ("smoke", "smoke, not comparable")
    assert result["checkpoint_sha256"] == done["weights_sha256"]
    assert is_scored(scored_study / "linear-s0", read_study(scored_study))
    for name, entry in result["scores"].items():
        card = entry["protocol"]
        assert np.isfinite(entry["value"])
        assert card["checkpoint_sha256"] == done["weights_sha256"]
        assert card["data_fingerprint"] == done["data_fingerprint"]
        assert card["split"] == "test"
        assert card.get("n_fake", card.get("n")) == NUM_TEST
        if name.startswith(("rfid", "gfid", "floor", "is_")):
            assert card["label"] == "smoke, not comparable"
            assert card["extractor_sha256"] == result["extractor_sha256"]
            assert card["layer"]
            assert "PIL bilinear" in card["input"]


def test_direct_cannot_sample_and_says_why(scored_study: Path) -> None:
    scores = scores_of(scored_study / "direct-s0")["scores"]
    for name in ("gfid_paper", "gfid_2048", "is_samples"):
        assert scores[name]["value"] is None
        assert "no prior to sample from" in scores[name]["reason"]
    assert scores["kl"]["value"] is None
    assert scores["rfid_paper"]["value"] > 0


@pytest.mark.parametrize("name", ["linear-s0", "direct-s0"])
def test_reconstruction_scores_follow_from_the_images(scored_study: Path, shards: Path, name: str) -> None:
    """One image at a time, so that means over images and not over batches must come out."""
    model, _ = load_trained(scored_study / name)
    test = load_split(shards, "test")
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    packed = test.take(np.arange(NUM_TEST))
    images = to_unit(packed)
    with torch.no_grad():
        output = model(images)
    ssim, psnr = [], []
    reconstructions = model.reconstruct(images)
    for pair in zip(reconstructions.split(1), images.split(1), strict=True):
        for metric, values in ((SSIM(data_range=1.0), ssim), (PSNR(data_range=1.0), psnr)):
            metric.update(pair)
            values.append(metric.compute())
    real, fake = extractor(packed), extractor(to_8bit(reconstructions))
    values = values_of(scored_study / name)
    expected = {
        "ssim": np.mean(ssim),
        "psnr": np.mean(psnr),
        "bce": bce_per_image(output.logits, images).mean().item(),
        "rfid_paper": frechet_distance(real.probabilities, fake.probabilities),
        "rfid_2048": frechet_distance(real.pool, fake.pool),
        "is_reconstructions": inception_score(fake.probabilities),
        "is_real": inception_score(real.probabilities),
    }
    if model.can_sample:
        expected["kl"] = kl_per_image(output.mean, output.log_variance).mean().item()
    assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_samples_are_drawn_from_the_seed_of_the_run(scored_study: Path, shards: Path) -> None:
    model, _ = load_trained(scored_study / "linear-s0")
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    noise = prior_noise(model, 0, NUM_TEST)
    assert noise.shape == (NUM_TEST, 8)
    assert not torch.equal(noise, prior_noise(model, 1, NUM_TEST))
    fake = extractor(to_8bit(model.sample(noise)))
    real = extractor(load_split(shards, "test").take(np.arange(NUM_TEST)))
    expected = frechet_distance(real.pool, fake.pool)
    assert values_of(scored_study / "linear-s0")["gfid_2048"] == pytest.approx(expected, rel=1e-4)


def test_two_ranks_score_every_image_once(scored_study: Path, tmp_path: Path) -> None:
    """13 test images on two ranks: padding, or a rank counted twice, would show in every score."""
    copy = tmp_path / "study"
    shutil.copytree(scored_study, copy, ignore=shutil.ignore_patterns(".features", SCORES_FILE, "figures"))
    run_ranks(2, "score_rank.py", str(copy), "linear-s0")
    alone, together = scores_of(scored_study / "linear-s0"), scores_of(copy / "linear-s0")
    assert together["world_size"] == 2
    assert values_of(copy / "linear-s0") == pytest.approx(values_of(scored_study / "linear-s0"), rel=1e-4)
    for name, entry in alone["scores"].items():
        counts = {key: value for key, value in entry["protocol"].items() if key.startswith("n")}
        assert counts.items() <= together["scores"][name]["protocol"].items()
    assert len(list((copy / "linear-s0" / "figures").glob("*.png"))) == 4


def test_scoring_again_gives_the_same_and_uses_the_kept_features(scored_study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(scored_study, copy)
    kept = {path: path.stat().st_mtime_ns for path in (copy / ".features").iterdir()}
    assert len(kept) == 2  # test images and the training images of the floor, for both runs together
    evaluate(copy / "direct-s0", read_study(copy))
    assert values_of(copy / "direct-s0") == values_of(scored_study / "direct-s0")
    assert {path: path.stat().st_mtime_ns for path in (copy / ".features").iterdir()} == kept


def test_grids_show_the_test_images_in_order(scored_study: Path, shards: Path) -> None:
    images = load_split(shards, "test").take(np.arange(NUM_TEST))[:, 0].numpy()
    grid = np.asarray(Image.open(scored_study / "linear-s0" / "figures" / "originals.png"))
    step = SIZE_PX + 2
    for number, image in enumerate(images):
        top, left = number // 8 * step, number % 8 * step
        assert np.array_equal(grid[top : top + SIZE_PX, left : left + SIZE_PX], image)
    found = {path.name for path in (scored_study / "direct-s0" / "figures").iterdir()}
    assert found == {"loss.png", "originals.png", "reconstructions.png"}


def test_inception_scores_carry_the_digest_of_their_weights(inception_weights: Path, tmp_path: Path) -> None:
    """The whole way with Inception v3 on a handful of images; its seeded weights are labelled as such."""
    data = make_shards(tmp_path / "shards", {"train": 16, "val": 4, "test": 3})
    run_dir = make_run(tmp_path / "x" / "direct-s0", data, variant="direct", max_steps=2)
    train(run_dir)
    result = evaluate(run_dir, Study("x", inception_weights=str(inception_weights)))
    digest = inception_weights.with_name("inception.pth.sha256").read_text().split()[0]
    card = result["scores"]["rfid_paper"]["protocol"]
    assert (card["extractor"], card["extractor_sha256"]) == ("inception", digest)
    assert card["label"] == result["label"] == "unknown weights, not comparable"
    assert "transform_input" in card["input"]
    assert 0 < result["scores"]["rfid_paper"]["value"] <= 2
    assert card["n_real"] == card["n_fake"] == 3


def test_a_run_that_is_not_finished_is_refused(scored_study: Path) -> None:
    with pytest.raises(RunError, match="not trained to the end"):
        evaluate(scored_study / "linear-s1", read_study(scored_study))


def test_missing_weights_are_refused_and_nothing_is_written(
    scored_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    study = dataclasses.replace(read_study(scored_study), extractor="inception")
    before = (scored_study / "linear-s0" / SCORES_FILE).read_bytes()
    with pytest.raises(WeightsError, match="no Inception v3 weights"):
        evaluate(scored_study / "linear-s0", study)
    assert (scored_study / "linear-s0" / SCORES_FILE).read_bytes() == before


def test_other_images_than_those_of_the_training_are_refused(tmp_path: Path) -> None:
    data = make_shards(tmp_path / "shards", {"train": 16, "val": 4, "test": 3})
    study = Study("x", ("direct-s0",), extractor="smoke")
    prepare_study(tmp_path / "x", study)
    run_dir = make_run(tmp_path / "x" / "direct-s0", data, variant="direct", max_steps=1)
    train(run_dir)
    make_shards(data, {"train": 16, "val": 4, "test": 4})
    with pytest.raises(DataError, match="packed data are now"):
        evaluate(run_dir, study)


def test_one_test_image_is_too_few(tmp_path: Path) -> None:
    data = make_shards(tmp_path / "shards", {"train": 16, "val": 4, "test": 1})
    run_dir = make_run(tmp_path / "x" / "direct-s0", data, variant="direct", max_steps=1)
    train(run_dir)
    with pytest.raises(DataError, match="has 1 test and 16 training images"):
        evaluate(run_dir, Study("x", extractor="smoke"))
