"""Scoring a run, and jobs/evaluate.py: what is due is scored, the rest is told."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from doors import load_door, run_door
from PIL import Image
from tiny import COUNTS, SIZE_PX, make_run, make_shards
from warm import on_ranks, score_on_rank

from data_prep.errors import DataError
from vae.run_dir import (
    DONE_FILE,
    FEATURES_DIR,
    FIGURES_DIR,
    METRICS_FILE,
    RUN_FILE,
    SCORES_FILE,
    figure_path,
    read_done,
)
from vae.scoring.evaluate import evaluate
from vae.scoring.score_cards import RunScores, read_scores
from vae.scoring.score_specs import SPEC, SPECS, Section
from vae.scoring.ssim import ssim_per_image
from vae.study import Study, is_scored, prepare_study, read_study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, to_unit
from vae.training.trainer import train

NUM_TEST = COUNTS["test"]
# There are none for the tiny images; test_classify.py makes some.
OF_CLASSIFIERS = {spec.key for spec in SPECS if spec.section is Section.DIAGNOSIS}
OF_CLASSIFIERS |= {SPEC[key].baseline for key in OF_CLASSIFIERS} - {""}


def scores_of(run_dir: Path) -> RunScores:
    scores = read_scores(run_dir)
    assert scores is not None
    return scores


def values_of(run_dir: Path) -> dict[str, float | None]:
    return {key: score.value for key, score in scores_of(run_dir).scores.items()}


def test_every_score_is_there_with_its_card(scored_study: Path) -> None:
    result, done = scores_of(scored_study / "linear-s0"), read_done(scored_study / "linear-s0")
    assert done is not None
    assert (
        set(result.scores)
        == {
            *("rfid_paper", "rfid_2048", "rfid_kid", "is_reconstructions", "ssim", "psnr", "bce", "kl"),
            *("rfid_sampled_paper", "rfid_sampled_2048", "rfid_sampled_kid", "is_reconstructions_sampled"),
            *("ssim_sampled", "psnr_sampled", "bce_sampled"),
            *("bce_excess", "latent_ratio", "active_units", "posterior_gap"),
            *("gfid_paper", "gfid_2048", "gfid_kid", "is_samples", "is_real"),
            *("floor_paper", "floor_2048", "floor_kid"),
            *("floor_train_paper", "floor_train_2048", "floor_train_kid"),
        }
        | OF_CLASSIFIERS
    )
    assert (result.extractor, result.label) == ("smoke", "smoke, not comparable")
    assert result.checkpoint_sha256 == done.weights_sha256
    assert is_scored(scored_study / "linear-s0", read_study(scored_study))
    for key in OF_CLASSIFIERS:
        assert "classify.py DATA" in result.scores[key].reason
    for key, score in result.scores.items():
        if key in OF_CLASSIFIERS:
            continue
        card = score.card
        assert score.value is not None
        assert math.isfinite(score.value)
        assert card.checkpoint_sha256 == done.weights_sha256
        assert card.data_fingerprint == done.data_fingerprint
        assert card.split == ("train" if key.startswith("floor_train") else "test")
        counts = {card.n, card.n_real, card.n_fake, card.n_train} - {None}
        assert counts == (set() if key == "latent_ratio" else {NUM_TEST})
        if key not in ("latent_ratio", "active_units", "posterior_gap"):
            assert (score.low or 0) <= score.value <= (score.high or 0)
            assert card.interval
        if key.startswith(("rfid", "gfid", "floor", "is_")):
            assert card.label == "smoke, not comparable"
            assert card.extractor_sha256 == result.extractor_sha256
            assert card.layer
            assert "PIL bilinear" in card.input


def test_a_run_in_double_precision_is_scored_in_it(tmp_path: Path, shards: Path) -> None:
    study = Study("double", ("linear-s0",), extractor="smoke")
    prepare_study(tmp_path, study)
    train(make_run(tmp_path / "linear-s0", shards, precision="fp64", epochs=1))
    evaluate(tmp_path / "linear-s0", study)
    values = values_of(tmp_path / "linear-s0").items()
    found = [value for key, value in values if key not in OF_CLASSIFIERS]
    assert all(value is not None and math.isfinite(value) for value in found)


def test_two_ranks_score_every_image_once(scored_study: Path, tmp_path: Path) -> None:
    """13 test images on two ranks: padding, or a rank counted twice, would show in every score."""
    copy = tmp_path / "study"
    shutil.copytree(scored_study, copy, ignore=shutil.ignore_patterns(FEATURES_DIR, SCORES_FILE, FIGURES_DIR))
    on_ranks(2, score_on_rank, copy / "linear-s0")
    alone, together = scores_of(scored_study / "linear-s0"), scores_of(copy / "linear-s0")
    assert together.world_size == 2
    assert together.values == pytest.approx(alone.values, rel=1e-4)
    for key, score in alone.scores.items():
        other = together.scores[key].card
        assert (score.card.n, score.card.n_real, score.card.n_fake) == (other.n, other.n_real, other.n_fake)
        assert score.card.noise_seed == other.noise_seed
    assert len(list((copy / "linear-s0" / FIGURES_DIR).glob("*.png"))) == 5


def test_grids_show_the_test_images_in_order(scored_study: Path, shards: Path) -> None:
    images = load_split(shards, "test").take(np.arange(NUM_TEST))[:, 0].numpy()
    grid = np.asarray(Image.open(figure_path(scored_study / "linear-s0", "originals")))
    step = SIZE_PX + 2
    for number, image in enumerate(images):
        top, left = number // 8 * step, number % 8 * step
        assert np.array_equal(grid[top : top + SIZE_PX, left : left + SIZE_PX], image)
    names = {path.name for path in (scored_study / "direct-s0" / FIGURES_DIR).iterdir()}
    assert names == {"loss.png", "originals.png", "reconstructions.png", "worst.png"}


def test_the_worst_images_stand_above_their_reconstructions_and_errors(
    scored_study: Path, shards: Path
) -> None:
    model, _ = load_trained(scored_study / "linear-s0")
    packed = load_split(shards, "test").take(np.arange(NUM_TEST))
    images = to_unit(packed)
    reconstructions = model.reconstruct(images)
    worst = ssim_per_image(reconstructions, images).argsort(stable=True)[:10]
    grid = np.asarray(Image.open(figure_path(scored_study / "linear-s0", "worst"))).astype(int)
    step = SIZE_PX + 2
    assert grid.shape == (3 * step - 2, 10 * step - 2)
    for column, index in enumerate(worst.tolist()):
        left = column * step
        original, reconstruction, error = (
            grid[top : top + SIZE_PX, left : left + SIZE_PX] for top in (0, step, 2 * step)
        )
        assert np.array_equal(original, packed[index, 0].numpy())
        assert np.abs(reconstruction - (255 * reconstructions[index, 0]).numpy()).max() <= 1
        assert np.array_equal(error, np.abs(original - reconstruction))


def test_inception_scores_carry_the_digest_of_their_weights(inception_weights: Path, tmp_path: Path) -> None:
    """The whole way with Inception v3 on a handful of images; its seeded weights are labelled as such."""
    data = make_shards(tmp_path / "shards", {"train": 16, "val": 4, "test": 3})
    run_dir = make_run(tmp_path / "x" / "direct-s0", data, variant="direct", max_steps=2)
    train(run_dir)
    result = evaluate(run_dir, Study("x", inception_weights=str(inception_weights)))
    assert result == read_scores(run_dir)
    digest = inception_weights.with_name("inception.pth.sha256").read_text().split()[0]
    score = result.scores["rfid_paper"]
    assert (score.card.extractor, score.card.extractor_sha256) == ("inception", digest)
    assert score.card.label == result.label == "unknown weights, not comparable"
    assert "transform_input" in score.card.input
    assert 0 < (score.value or 0) <= 2
    assert score.card.n_real == score.card.n_fake == 3


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


# --- jobs/evaluate.py ------------------------------------------------------------------------


def test_one_run_is_scored_anew_with_the_kept_features_and_the_same_scores(study_dir: Path) -> None:
    """Named as everywhere else; nothing but its own folder changes."""
    again, other = study_dir / "direct-s0" / SCORES_FILE, study_dir / "linear-s0" / SCORES_FILE
    kept = [other, *(study_dir / FEATURES_DIR).iterdir()]
    assert len(kept) == 7  # beside the scores: test images and the training images of 5 floors
    before, values = again.stat().st_mtime_ns, values_of(study_dir / "direct-s0")
    modified = [path.stat().st_mtime_ns for path in kept]
    done = run_door("evaluate", "tiny/direct-s0", "--runs-dir", study_dir.parent)
    assert done.returncode == 0, done.stderr
    assert again.stat().st_mtime_ns > before
    assert values_of(study_dir / "direct-s0") == values
    assert [path.stat().st_mtime_ns for path in kept] == modified
    assert len(list((study_dir / FEATURES_DIR).iterdir())) == 6
    assert "linear-s0" not in done.stdout


def test_of_a_study_what_lacks_scores_is_scored_and_the_table_is_printed(study_dir: Path) -> None:
    kept, lost = study_dir / "linear-s0" / SCORES_FILE, study_dir / "direct-s0" / SCORES_FILE
    before, modified = values_of(study_dir / "direct-s0"), kept.stat().st_mtime_ns
    lost.unlink()
    done = run_door("evaluate", "tiny", "--runs-dir", study_dir.parent)
    assert done.returncode == 1, done.stderr  # for of two runs there are none
    assert "2 of 4 runs have no scores: linear-s1, direct-s1" in done.stderr
    assert values_of(study_dir / "direct-s0") == before
    assert kept.stat().st_mtime_ns == modified
    assert "linear-s1: stopped: training is at step 6 of 24" in done.stdout
    assert done.stdout.count("smoke, not comparable") == 10
    assert "direct-s0: reconstructions: 13 of 13 images" in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "is_due"),
    [
        (SCORES_FILE, None, True),
        (SCORES_FILE, "{", True),
        (SCORES_FILE, "of other weights", True),
        (DONE_FILE, None, False),
        (DONE_FILE, "{", False),
        (METRICS_FILE, "{", False),
        (RUN_FILE, "{", False),
    ],
)
def test_a_trained_run_without_whole_scores_of_its_weights_is_due(
    study_dir: Path, file: str, content: str | None, is_due: bool
) -> None:
    run_dir, door = study_dir / "linear-s0", load_door("evaluate")
    if content == "of other weights":
        content = (run_dir / file).read_text().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "x')
    (run_dir / file).unlink() if content is None else (run_dir / file).write_text(content)
    assert door.is_due(run_dir, read_study(study_dir)) == is_due


def test_scores_by_other_inception_weights_are_due(study_dir: Path, inception_weights: Path) -> None:
    run_dir, door = study_dir / "linear-s0", load_door("evaluate")
    study = Study("tiny", extractor="inception", inception_weights=str(inception_weights))
    assert door.is_due(run_dir, study)
    scores = json.loads((run_dir / SCORES_FILE).read_text())
    digest = inception_weights.with_name("inception.pth.sha256").read_text().split()[0]
    for extractor_sha256, is_due in ((digest, False), ("0" * 64, True)):
        changed = {**scores, "extractor": "inception", "extractor_sha256": extractor_sha256}
        (run_dir / SCORES_FILE).write_text(json.dumps(changed))
        assert door.is_due(run_dir, study) == is_due


def test_fast_leaves_out_what_takes_long_and_full_adds_it(study_dir: Path) -> None:
    run_dir, study = study_dir / "linear-s0", read_study(study_dir)
    before = values_of(run_dir)
    (run_dir / SCORES_FILE).unlink()
    done = run_door("evaluate", run_dir, "--scores", "fast")
    assert done.returncode == 0, done.stderr
    fast = values_of(run_dir)
    left_out = {key for key in before if "_sampled" in key or key.startswith("floor_train")}
    assert set(before) - set(fast) == left_out
    assert {key: fast[key] for key in fast if not key.startswith("floor")} == {
        key: before[key] for key in fast if not key.startswith("floor")
    }
    assert not is_scored(run_dir, study)  # the study wants them all
    assert is_scored(run_dir, dataclasses.replace(study, scores="fast"))
    assert load_door("evaluate").is_due(run_dir, study)
    done = run_door("evaluate", "tiny", "--runs-dir", study_dir.parent)
    assert done.returncode == 1, done.stderr  # other runs of this study are not trained
    assert values_of(run_dir) == before


def test_smoke_scores_take_the_place_of_others_only_if_asked(study_dir: Path) -> None:
    path = study_dir / "linear-s0" / SCORES_FILE
    content = path.read_text().replace('"extractor": "smoke"', '"extractor": "inception"', 1)
    path.write_text(content)
    done = run_door("evaluate", study_dir / "linear-s0")
    assert (done.returncode, path.read_text()) == (2, content)
    assert "has scores by inception; smoke scores would replace them" in done.stderr.splitlines()[0]
    assert "--replace" in done.stderr
    done = run_door("evaluate", study_dir / "linear-s0", "--replace")
    assert done.returncode == 0, done.stderr
    assert scores_of(study_dir / "linear-s0").extractor == "smoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["linear-s1"], "is not trained to the end"),
        (["linear-s0", "--extractor", "clip"], "invalid choice"),
        (
            ["linear-s0", "--extractor", "inception", "--inception-weights", "absent.pth"],
            "no Inception v3 weights",
        ),
        (["absent"], "no run 'absent' in"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    scored_study: Path, arguments: list[str], message: str
) -> None:
    before = (scored_study / "linear-s0" / SCORES_FILE).read_bytes()
    done = run_door("evaluate", scored_study / arguments[0], *arguments[1:])
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    assert (scored_study / "linear-s0" / SCORES_FILE).read_bytes() == before
