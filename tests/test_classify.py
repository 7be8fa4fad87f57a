"""jobs/classify.py, the classifiers it makes, and what scoring and the report say by them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from doors import load_door, run_door
from html_reader import HtmlReader
from tiny import SIZE_PX, blob, make_run, record
from warm import on_ranks, score_on_rank

from data_prep.errors import DataError, RunError
from data_prep.files import only_holder
from data_prep.manifest import read_manifest, write_manifest
from data_prep.shards import write_shard
from vae.report.report import write_report
from vae.run_dir import CLASSIFIERS_DIR
from vae.scoring import classifier_training
from vae.scoring.classifier import load_classifiers, to_input
from vae.scoring.classifier_record import (
    RECORD_FILE,
    ClassifierSettings,
    classifiers_dir,
    part_name,
    weights_name,
)
from vae.scoring.classifier_training import LOCK_FILE, make_classifiers, read_part, write_part
from vae.scoring.evaluate import evaluate
from vae.scoring.extractors import to_8bit
from vae.scoring.judgement import judge
from vae.scoring.ruler import compressed, principal_components, projected, shrunk
from vae.scoring.score_cards import read_scores
from vae.study import Study, prepare_study, read_study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, to_unit
from vae.training.trainer import train

COUNTS = {"train": 64, "val": 16, "test": 72}  # more than one batch to judge
SETTINGS = ClassifierSettings(seeds=2, epochs=3, batch_size=8)
CPU = torch.device("cpu")


def make_telling_shards(folder: Path, counts: dict[str, int] = COUNTS, classes: int = 2) -> Path:
    """Blobs whose class shows: those of the second are inverted."""
    folder.mkdir(parents=True)
    shards, first = [], 0
    names = [f"CLASS{number}" for number in range(classes)]
    for split, count in counts.items():
        shards.append(f"{split}-0.h5")
        attributes = {"class_names": json.dumps(names), "split": split, "plan_sha256": "tiny"}
        items = []
        for number in range(count):
            label = number % classes
            pixels = blob(first + number)
            row = record(split, number)
            shown = 255 - pixels if label else pixels
            items.append((type(row)(**{**vars(row), "label": label}), shown.tobytes()))
        write_shard(folder / shards[-1], SIZE_PX, attributes, items)
        first += count
    write_manifest(folder, {"size_px": SIZE_PX}, names, shards)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Packed images, and the runs folder with their classifiers and a scored study."""
    root = tmp_path_factory.mktemp("classify")
    data, runs = make_telling_shards(root / "shards"), root / "runs"
    make_classifiers(data, runs, SETTINGS)
    study = Study("tiny", ("linear-s0", "direct-s0"), extractor="smoke")
    prepare_study(runs / "tiny", study)
    for name in study.runs:
        train(make_run(runs / "tiny" / name, data, variant=name[:-3]))
        evaluate(runs / "tiny" / name, study)
    return data, runs


def test_classifiers_learn_what_can_be_learnt_and_say_what_they_reach(made: tuple[Path, Path]) -> None:
    data, runs = made
    found, _ = load_classifiers(runs, read_manifest(data).fingerprint, CPU)
    assert found is not None
    assert found.record.real.auc > 0.95
    assert min(found.record.val_auc) > 0.9
    test = load_split(data, "test")
    images = test.take(np.arange(len(test)))
    assert np.allclose(found.probabilities(images, CPU).numpy(), found.of_test, atol=1e-6)
    expected = judge(found.of_test, found.of_test, test.labels, found.record.thresholds)
    assert expected == found.record.real
    ruler = {entry.name: entry.judgement for entry in found.record.ruler}
    assert ruler["the mean training image"].auc == 0.5
    assert ruler["JPEG, quality 50"].auc > 0.9
    assert not list((runs / CLASSIFIERS_DIR).glob("*/*.part.pt"))


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(
    made: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, runs = made
    shutil.copytree(runs / CLASSIFIERS_DIR, tmp_path / CLASSIFIERS_DIR)
    fingerprint = read_manifest(data).fingerprint
    folder = classifiers_dir(tmp_path, fingerprint)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    make_classifiers(data, tmp_path, SETTINGS)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    weights = folder / weights_name(1)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    none, reason = load_classifiers(tmp_path, fingerprint, CPU)
    assert none is None
    assert "has changed" in reason
    assert "remove its folder" in caplog.text
    make_classifiers(data, tmp_path, SETTINGS)
    assert load_classifiers(tmp_path, fingerprint, CPU)[1] == ""


def test_other_settings_than_those_of_the_classifiers_that_are_there_are_refused(
    made: tuple[Path, Path],
) -> None:
    data, runs = made
    done = run_door("classify", data, "--runs-dir", runs, "--seeds", "5")
    assert done.returncode == 2
    assert "holds classifiers that were made otherwise" in done.stderr


def test_two_processes_do_not_make_the_same_classifiers(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = made
    folder = classifiers_dir(tmp_path, read_manifest(data).fingerprint)
    with only_holder(folder / LOCK_FILE), pytest.raises(RunError, match="another process makes"):
        make_classifiers(data, tmp_path, SETTINGS)


def test_a_loss_that_is_no_number_is_one_line_and_leaves_nothing_to_go_on_from(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = made
    monkeypatch.setattr(classifier_training, "validate", lambda *_: (float("nan"), 0.5))
    with pytest.raises(RunError, match="classifier 0 has learnt nothing"):
        make_classifiers(data, tmp_path, ClassifierSettings(seeds=1, epochs=1))
    assert not list(tmp_path.rglob("*.part.pt"))


def test_two_ranks_judge_every_image_once(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, runs = made
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    run_dir = copy / "tiny" / "linear-s0"
    (run_dir / "scores.json").unlink()
    on_ranks(2, score_on_rank, run_dir)
    alone, together = read_scores(runs / "tiny" / "linear-s0"), read_scores(run_dir)
    assert alone is not None
    assert together is not None
    assert together.world_size == 2
    assert together.values == pytest.approx(alone.values, rel=1e-4, abs=0.02)
    for key, score in alone.scores.items():
        assert (together.scores[key].high is None) == (score.high is None)


def test_an_interrupted_training_goes_on_to_the_same_classifiers(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, runs = made
    fingerprint = read_manifest(data).fingerprint
    whole, folder = classifiers_dir(runs, fingerprint), classifiers_dir(tmp_path, fingerprint)
    epochs: list[tuple[int, int]] = []
    train_epoch = classifier_training.train_epoch

    def interrupted(*arguments: object) -> None:
        seed, epoch = arguments[3:5]
        if (seed, epoch) == (1, 1) and len(epochs) == 4:
            raise KeyboardInterrupt
        epochs.append((int(str(seed)), int(str(epoch))))
        train_epoch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(classifier_training, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_classifiers(data, tmp_path, SETTINGS)
    assert (folder / part_name(1)).exists()
    assert not (folder / RECORD_FILE).exists()
    done = list(epochs)
    epochs.append((9, 9))  # no interruption any more
    make_classifiers(data, tmp_path, SETTINGS)
    again = epochs[len(done) + 1 :]
    assert again[0] == (1, 1)
    assert not {*done} & {*again}
    for name in ("seed-0.safetensors", "seed-1.safetensors", "test.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_half_trained_classifier_of_other_settings_or_bytes_begins_anew(
    made: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, _ = made
    folder = classifiers_dir(tmp_path, read_manifest(data).fingerprint)
    folder.mkdir(parents=True)
    (folder / part_name(0)).write_bytes(b"PK no archive")
    make_classifiers(data, tmp_path, ClassifierSettings(seeds=1, epochs=1))
    assert "begins anew" in caplog.text
    part = tmp_path / "part.pt"
    write_part(part, {"made_from": "one thing", "epoch": 3})
    assert read_part(part, "one thing") == {"made_from": "one thing", "epoch": 3}
    assert read_part(part, "another") is None


def test_scores_follow_from_the_images(made: tuple[Path, Path]) -> None:
    data, runs = made
    run_dir = runs / "tiny" / "linear-s0"
    model, _ = load_trained(run_dir)
    found, _ = load_classifiers(runs, read_manifest(data).fingerprint, CPU)
    scores = read_scores(run_dir)
    assert found is not None
    assert scores is not None
    test = load_split(data, "test")
    copies = to_8bit(model.reconstruct(to_unit(test.take(np.arange(len(test))))))
    judgement = judge(
        found.probabilities(copies, CPU).numpy(), found.of_test, test.labels, found.record.thresholds
    )
    expected = {
        "auc": judgement.auc,
        "auc_drop": found.record.real.auc - judgement.auc,
        "sensitivity": judgement.sensitivity,
        "brier": judgement.brier,
        "decisions_changed": judgement.decisions_changed,
        "auc_real": found.record.real.auc,
    }
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, abs=0.02)
    entry = scores.scores["auc"]
    assert entry.low is not None
    assert "over 2 classifiers" in entry.card.note
    assert scores.scores["auc_real"].card.images == "test images"


def test_the_report_tells_of_the_diagnosis_and_of_the_ruler(made: tuple[Path, Path]) -> None:
    _, runs = made
    page = write_report(runs / "tiny").with_suffix(".md").read_text()
    section = page.split("## Is the diagnosis kept")[1].split("\n## ")[0]
    assert "| the mean training image |" in section
    assert "2 classifiers of CLASS0, CLASS1" in section
    assert "not comparable" not in section  # that is said of another network
    verdict = page.split("## In short")[1].split("\n## ")[0]
    assert "linear-s0 loses" in verdict
    assert "classify.py" not in verdict


def test_without_classifiers_the_scores_and_the_report_say_how_to_make_them(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    _, runs = made
    shutil.copytree(runs / "tiny", tmp_path / "tiny")
    run_dir = tmp_path / "tiny" / "linear-s0"
    result = evaluate(run_dir, read_study(tmp_path / "tiny"))
    assert "classify.py DATA" in result.scores["auc"].reason
    shutil.rmtree(tmp_path / "tiny" / "direct-s0")
    page = HtmlReader(write_report(tmp_path / "tiny").read_text()).text
    assert "Not measured: there are no classifiers of these images" in page
    shutil.copytree(runs / CLASSIFIERS_DIR, tmp_path / CLASSIFIERS_DIR)
    page = HtmlReader(write_report(tmp_path / "tiny").read_text()).text
    assert "Not measured yet, though there are classifiers of these images" in page


def test_scores_without_the_diagnosis_are_due_once_there_are_classifiers(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    _, runs = made
    shutil.copytree(runs / "tiny", tmp_path / "tiny")
    run_dir, study = tmp_path / "tiny" / "linear-s0", read_study(tmp_path / "tiny")
    evaluate(run_dir, study)
    door = load_door("evaluate")
    assert not door.is_due(run_dir, study)
    shutil.copytree(runs / CLASSIFIERS_DIR, tmp_path / CLASSIFIERS_DIR)
    assert door.is_due(run_dir, study)
    evaluate(run_dir, study)
    assert not door.is_due(run_dir, study)


def test_one_class_alone_or_few_images_are_refused_in_one_line(tmp_path: Path) -> None:
    data = make_telling_shards(tmp_path / "one", classes=1)
    with pytest.raises(DataError, match="cannot show whether a diagnosis is kept: 64 CLASS0"):
        make_classifiers(data, tmp_path / "runs", SETTINGS)
    few = make_telling_shards(tmp_path / "few", {"train": 20, "val": 4, "test": 8})
    done = run_door("classify", few, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 2
    assert "the val images cannot show" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [("--seeds", "0"), ("--epochs", "101"), ("--seeds", "x")])
def test_settings_out_of_range_are_refused(tmp_path: Path, words: tuple[str, str]) -> None:
    done = run_door("classify", tmp_path, *words)
    assert done.returncode == 2
    assert words[0] in done.stderr


def test_the_command_says_what_the_classifiers_reach(tmp_path: Path) -> None:
    data = make_telling_shards(tmp_path / "shards", {"train": 16, "val": 8, "test": 8})
    words = ("--runs-dir", tmp_path / "runs", "--seeds", "1", "--epochs", "1")
    done = run_door("classify", data, *words)
    assert done.returncode == 0, done.stderr
    assert "real test images: AUC " in done.stdout
    assert "16 x 16 px = 256 grey values: AUC " in done.stdout


# --- copies -------------------------------------------------------------------------------------------------


def test_copies_are_what_they_are_called() -> None:
    image = blob(3)
    copy, num_bytes = compressed(image, format="JPEG", quality=50)
    assert copy.shape == image.shape
    assert 0 < np.abs(copy.astype(int) - image).mean() < 10
    assert 100 < num_bytes < 2000
    small, size = shrunk(image, pixels=8)
    assert (small.shape, size) == (image.shape, None)
    assert shrunk(np.full((32, 32), 77, np.uint8), pixels=8)[0].tolist() == np.full((32, 32), 77).tolist()


def test_principal_components_are_orthonormal_and_enough_of_them_give_the_image() -> None:
    flat = np.random.default_rng(0).uniform(0, 255, (6, 50)).astype(np.float32)
    mean, components = principal_components(flat, 10)
    assert components.shape == (5, 50)  # 6 images span 5 dimensions around their mean
    assert np.allclose(components @ components.T, np.eye(5), atol=1e-4)
    image = flat[2].round().astype(np.uint8).reshape(5, 10)
    kept, _ = projected(image, mean=mean, components=components)
    assert np.abs(kept.astype(int) - image).max() <= 1


def test_the_input_is_the_average_over_pixels() -> None:
    images = (
        torch.arange(256 * 256, dtype=torch.float32).reshape(1, 1, 256, 256).remainder(251).to(torch.uint8)
    )
    found = to_input(images, CPU)
    expected = images.double().reshape(1, 1, 128, 2, 128, 2).mean((3, 5)) / 255
    assert torch.allclose(found.double(), (expected - 0.5) / 0.25, atol=1e-5)
