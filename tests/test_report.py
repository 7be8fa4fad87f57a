"""The report of a really trained and scored tiny study; it comes whatever is missing or damaged."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doors import run_door
from html_reader import HtmlReader
from tiny import REPOSITORY, child_environment

from vae.report.figures_section import INTERVALS_CAPTION
from vae.report.page import number
from vae.report.report import score_table, write_report
from vae.run_dir import DIGESTS_FILE, DRAWS_FILE
from vae.scoring.score_specs import SPECS, Section
from vae.study import Study, prepare_study, read_study
from vae.training.trainer import train


def score_of(study_dir: Path, run: str, name: str) -> float:
    return json.loads((study_dir / run / "scores.json").read_text())["scores"][name]["value"]


def table_rows(page: str) -> list[list[str]]:
    """All table rows of report.md."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\\", "") for cell in row] for row in rows]


def test_the_report_is_one_file_that_opens_offline(study_dir: Path) -> None:
    path = write_report(study_dir)
    assert path == study_dir / "report.html"
    reader = HtmlReader(path.read_text())
    outside = [
        value
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "href") and value and not value.startswith("data:")
    ]
    assert outside == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    pictures = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert [alt.split(":")[0] for alt in pictures if alt] == [
        INTERVALS_CAPTION,
        "Loss per image",
        "The first test images, up to 32",
        "linear-s0",
        "direct-s0",
        "linear-s0",
        "direct-s0",
        "linear-s0",
    ]


def first_rows(study_dir: Path) -> dict[str, list[str]]:
    """Rows of the table of FID and Inception score by their first cell."""
    page = (study_dir / "report.md").read_text()
    section = page.split("## FID-1000 and Inception score")[1].split("\n## ")[0]
    return {row[0]: row for row in table_rows(section)}


def test_a_score_stands_beside_that_of_real_images(study_dir: Path) -> None:
    write_report(study_dir)
    rows = first_rows(study_dir)
    keys = [spec.key for spec in SPECS if spec.section is Section.PAPER]
    for column, key in enumerate(keys, start=1):
        value, _, reach = rows["linear-s0"][column].partition(" ± ")
        assert value == number(score_of(study_dir, "linear-s0", key))
        assert float(reach) > 0
    samples = keys.index("gfid_paper") + 1
    assert rows["direct-s0"][samples] == "-"
    floor = number(score_of(study_dir, "linear-s0", "floor_paper"))
    assert re.fullmatch(rf"{re.escape(floor)} \([\d.]+ to [\d.]+\)", rows["real images"][samples])
    beside = rows["training images beside others"]
    assert beside[samples].startswith(number(score_of(study_dir, "linear-s0", "floor_train_paper")))
    assert beside[-2] == "-"  # the Inception score has no such row


def relabel(study_dir: Path, label: str) -> None:
    """Make a study scored by Inception with weights that have that label."""
    path = study_dir / "study.yaml"
    path.write_text(path.read_text().replace("smoke", "inception"))
    for path in study_dir.glob("*/scores.json"):
        text = path.read_text().replace("smoke, not comparable", label)
        path.write_text(text.replace('"extractor": "smoke"', '"extractor": "inception"'))
        (path.parent / DIGESTS_FILE).unlink()


def test_published_figures_stand_beside_comparable_scores(study_dir: Path) -> None:
    relabel(study_dir, "")
    assert "can be compared with care" in HtmlReader(write_report(study_dir).read_text()).text
    rows = first_rows(study_dir)
    assert rows["published, first iteration (linear)"][1:7] == ["0.447", "-", "-", "2.479", "-", "-"]
    assert rows["published, second iteration (direct)"][1:7] == ["0.133", "-", "-", "3.014", "-", "-"]
    page = (study_dir / "report.md").read_text()
    assert "Where we differ from the published study, or fill its gaps" in page
    assert ["seeds", "one training of each", "as many as there are runs"] in table_rows(page)


def test_what_was_scored_decides_what_stands_beside_the_published_figures(study_dir: Path) -> None:
    """Not the extractor that study.yaml names: another scoring may have come since."""
    path = study_dir / "study.yaml"
    path.write_text(path.read_text().replace("extractor: smoke", "extractor: inception"))
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert not any(word in page for word in ("0.447", "3.014", "published, "))
    assert "compare them with no other number" in page
    relabel(study_dir, "")
    path.write_text(path.read_text().replace("extractor: inception", "extractor: smoke"))
    assert "published, first iteration" in HtmlReader(write_report(study_dir).read_text()).text


def test_the_first_words_are_a_verdict(study_dir: Path) -> None:
    page = (write_report(study_dir).with_suffix(".md")).read_text()
    section = page.split("## In short")[1].split("\n## ")[0]
    said = {row[0]: row[1] for row in table_rows(section) if row[0] not in ("", "---")}
    assert list(said) == ["reconstruction", "generation", "latents", "how sure", "not measured"]
    assert "no classifier has looked at the images" in said["not measured"]
    assert "linear-s0 minus direct-s0: SSIM " in said["reconstruction"]
    assert "FID" not in said["reconstruction"]  # the smoke network has learnt nothing
    assert (
        "linear-s0: scores by the smoke network say nothing. direct-s0 cannot sample." in said["generation"]
    )
    assert "1 latent to 128 pixels" in said["latents"]
    assert said["how sure"].startswith("intervals: 90%, by 100 random halves of 13 images; one training of")
    relabel(study_dir, "")
    page = write_report(study_dir).with_suffix(".md").read_text()
    assert "samples of linear-s0: above the floor (FID-2048 " in page


def test_two_variants_are_compared_on_the_same_patients(study_dir: Path) -> None:
    page = write_report(study_dir).with_suffix(".md").read_text()
    section = page.split("## Variants beside each other")[1].split("\n## ")[0]
    rows = {row[0]: row for row in table_rows(section)}
    values = [score_of(study_dir, run, "psnr") for run in ("linear-s0", "direct-s0")]
    draws = [
        json.loads((study_dir / run / DRAWS_FILE).read_text())["draws"]["psnr"]
        for run in ("linear-s0", "direct-s0")
    ]
    apart = np.subtract(*draws)
    reach = 1.6448536 * np.std(apart, ddof=1) * math.sqrt(6 / 7)  # of 13 patients
    value, _, shown = rows["PSNR (dB)"][3].partition(" ± ")
    assert value.lstrip("+") == number(values[0] - values[1])
    assert float(shown) == pytest.approx(reach, rel=0.05)
    apart_alone = [np.std(draw, ddof=1) for draw in draws]
    assert reach < max(apart_alone)  # what makes an image hard for both drops out
    is_told_apart = abs(values[0] - values[1]) > reach
    better = "linear-s0" if values[0] > values[1] else "direct-s0"
    assert rows["PSNR (dB)"][4] == (better if is_told_apart else "not told apart")


def test_draws_of_other_scores_are_not_used(study_dir: Path) -> None:
    path = study_dir / "linear-s0" / DRAWS_FILE
    path.write_text(path.read_text().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "x'))
    page = write_report(study_dir).with_suffix(".md").read_text()
    section = page.split("## Variants beside each other")[1].split("\n## ")[0]
    assert {row[4] for row in table_rows(section)} - {"better"} <= {"-", "---"}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("smoke, not comparable", "compare them with no other number"),
        ("unknown weights, not comparable", "published study are not shown beside them"),
    ],
)
def test_published_figures_stand_beside_no_scores_that_are_not_comparable(
    study_dir: Path, label: str, words: str
) -> None:
    if label.startswith("unknown"):
        relabel(study_dir, label)
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert not any(word in page for word in ("0.447", "3.014", "can be compared with care", "published, "))
    assert words in page
    assert f"FID and IS here: {label}." in page


def test_scores_are_named_in_words_in_sentences(study_dir: Path) -> None:
    page = HtmlReader(write_report(study_dir).read_text()).text
    words = "FID-1000 of samples, FID-2048 of samples, KID of samples and Inception score of samples"
    assert f"No {words} for direct-s0: " in page


def time_section(study_dir: Path) -> str:
    write_report(study_dir)
    return (study_dir / "report.md").read_text().split("## Where the time went")[1].split("\n## ")[0]


def test_the_time_of_every_run_and_attempt_is_told(study_dir: Path) -> None:
    """The stopped run goes on, so that it has two attempts; without a scheduler none waited."""
    train(study_dir / "linear-s1")
    section = time_section(study_dir)
    rows = {row[0]: row for row in table_rows(section)}
    times = ["start-up", "useful steps", "steps done again", "saving", "validation", "useful"]
    assert rows["run"][1:] == times
    assert {"linear-s0", "direct-s0", "linear-s1", "all runs"} <= rows.keys()
    assert re.fullmatch(r"\d+%", rows["all runs"][-1])
    assert "linear-s1: 2 attempts" in section
    assert "from step 0, 6 steps" in rows
    assert rows["from step 6, 18 steps"][1] == "1 x cpu"
    assert "For the next launch" not in section  # seconds of training tell nothing


def test_times_and_suggestions_of_a_cluster_are_told(study_dir: Path) -> None:
    """24 steps in 50 minutes on 2 GPUs, an hour after the dependency was met: numbers known on paper."""
    path = study_dir / "linear-s0" / "provenance.json"
    known = json.loads(path.read_text())
    work = {
        "reached_step": 24,
        "last_s": 7150.0,
        "train_s": 3000.0,
        "save_s": 60.0,
        "saves": 3,
        "val_s": 30.0,
    }
    attempt = {
        **{"started": "2026-01-31T12:00:00+0000", "device": "cuda", "world_size": 2, "from_step": 0},
        **{"submitted_s": 100.0, "eligible_s": 400.0, "allocated_s": 4000.0, "started_s": 4010.0},
        "work": {**work, "cores": 2.1, "host_gb": 3.0},
    }
    path.write_text(json.dumps({**known, "attempts": [attempt]}))
    section = time_section(study_dir)
    row = next(row for row in table_rows(section) if row[0] == "linear-s0")
    assert row[1:] == ["60 min", "60 s", "50 min", "0 s", "60 s", "30 s", "95%", "1.75"]
    for setting in ("train_limit_min 75 ", "cpus_per_gpu 3 ", "mem_per_gpu_gb 4 "):
        assert setting in section.replace("\\", "")
    assert "checkpoint" not in section


def test_smoke_scores_are_labelled_wherever_they_stand(study_dir: Path) -> None:
    label = "smoke, not comparable"
    write_report(study_dir)
    page = (study_dir / "report.md").read_text()
    tables = page.split("## FID-1000")[1].split("## What the latents are")[0]
    rows = [row for row in table_rows(tables) if row[0] in ("linear-s0", "direct-s0", "real images")]
    assert len(rows) == 2 * 4 + 2
    assert {row[-1] for row in rows} == {label}
    assert f"FID and IS here: {label}." in (study_dir / "report.html").read_text()
    assert score_table(study_dir, read_study(study_dir).runs).count(label) == 10
    with (study_dir / "scores.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if row["score"].startswith(("rfid", "gfid", "is_"))]
    assert len(lines) == 2 * 13
    assert {row["label"] for row in lines} == {label}


def test_runs_that_are_not_ready_appear_with_the_reason(study_dir: Path) -> None:
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert "stopped: training is at step 6 of 24" in page
    assert "missing: it was never started" in page
    with (study_dir / "scores.csv").open() as file:
        reasons = {row["run"]: row["reason"] for row in csv.DictReader(file) if not row["score"]}
    assert reasons == {
        "linear-s1": "stopped: training is at step 6 of 24",
        "direct-s1": "missing: it was never started",
    }


def test_csv_holds_every_score_in_full(study_dir: Path) -> None:
    write_report(study_dir)
    with (study_dir / "scores.csv").open() as file:
        found = {(row["run"], row["score"]): row for row in csv.DictReader(file)}
    row = found["linear-s0", "rfid_2048"]
    assert float(row["value"]) == score_of(study_dir, "linear-s0", "rfid_2048")
    assert (row["n_real"], row["n_fake"], row["split"]) == ("13", "13", "test")
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert (row["latents"], row["noise_seed"]) == ("mean of q(z|x)", "")
    assert "random halves of 13 images" in row["interval"]  # nobody knows their patients
    assert "PIL bilinear" in row["input"]
    assert "8-bit" in found["linear-s0", "gfid_2048"]["input"]
    assert found["linear-s0", "gfid_2048"]["noise_seed"] == "0"
    assert "not the 8 bit" in found["linear-s0", "psnr"]["input"]
    assert "at most 100 dB" in found["linear-s0", "psnr"]["computed_by"]
    assert found["direct-s0", "psnr"]["latents"] == "the encoder's map: no distribution"
    floor = found["linear-s0", "floor_2048"]
    assert (floor["n_real"], floor["n_train"], floor["n_fake"], floor["latents"]) == ("13", "13", "", "")
    assert (found["linear-s0", "is_real"]["n"], found["linear-s0", "is_real"]["n_fake"]) == ("13", "")
    assert found["linear-s0", "psnr"]["unit"] == "dB"
    assert "no prior to sample from" in found["direct-s0", "gfid_paper"]["reason"]


def test_settings_provenance_and_cards_are_told(study_dir: Path) -> None:
    page = HtmlReader(write_report(study_dir).read_text()).text
    known = json.loads((study_dir / "linear-s0" / "provenance.json").read_text())
    for word in (known["commit"], known["data_fingerprint"], known["attempts"][0]["started"], "Attempts: 1"):
        assert word in page
    assert ["latent_dim", "256", "8", "8", "8"] in table_rows((study_dir / "report.md").read_text())
    assert "not a clinical quality measure" in page
    assert "exact distance by the nuclear norm" in page


def test_a_card_says_of_no_score_what_is_true_of_another(study_dir: Path) -> None:
    """What all scores share stands above; latents, noise and input stand with the scores they belong to."""
    page = write_report(study_dir).with_suffix(".md").read_text()
    cards = page.split("## Score cards")[1].split("direct-s0: how each")[0]
    facts = {row[0] for row in table_rows(cards) if len(row) == 2}
    assert "checkpoint sha256" in facts
    assert not facts & {"latents", "noise seed", "input", "n fake", "images"}
    head, *rows = [row for row in table_rows(cards) if len(row) > 2 and "---" not in row[0]]
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert found["gfid_paper"]["noise seed"] == "0"
    assert found["rfid_paper"]["noise seed"] == found["floor_paper"]["latents"] == ""
    assert found["floor_paper"]["n train"] == "13"


def test_text_from_files_is_not_taken_for_markup(study_dir: Path) -> None:
    path = study_dir / "linear-s0" / "provenance.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "commit": "<script>alert(1)</script>"}))
    page = write_report(study_dir).read_text()
    assert "<script>" not in page
    assert "<script>alert(1)</script>" in HtmlReader(page).text
    assert "<script>" not in (study_dir / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("linear-s0/scores.json", "{", "score the run again: python jobs/evaluate.py STUDY/RUN"),
        ("linear-s0/done.json", "", "done.json is damaged: Input data was truncated; remove it and launch"),
        ("linear-s0/run.yaml", "lr: [", "run.yaml cannot be read"),
        ("linear-s0/run.yaml", "colour: red\n", "colour"),
        ("linear-s0/metrics.jsonl", '{"kind"\n', "metrics.jsonl, line 1, is damaged: "),
        ("linear-s0/provenance.json", "[]", "provenance.json is damaged: Expected object, got array; remove"),
    ],
)
def test_the_report_comes_though_a_file_is_damaged(
    study_dir: Path, file: str, content: str, reason: str
) -> None:
    (study_dir / file).write_text(content)
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert f"damaged: {study_dir}" in page
    assert reason in page
    assert number(score_of(study_dir, "direct-s0", "rfid_paper")) in page


def test_the_report_comes_without_pictures_and_images(study_dir: Path) -> None:
    shutil.rmtree(study_dir / "linear-s0" / "figures")
    run_file = study_dir / "direct-s0" / "run.yaml"
    run_file.write_text(run_file.read_text().replace("/shards", "/moved"))
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert "originals.png is missing" in page
    assert "The images are not at hand any more" in page


def test_the_command_behind_a_run_is_shown_as_it_would_be_typed(study_dir: Path) -> None:
    path = study_dir / "linear-s0" / "provenance.json"
    command = ["python", "jobs/launch.py", "--run.lr", "3e-4", "--data", "my films"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "command": command}))
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert "python jobs/launch.py --run.lr 3e-4 --data 'my films'" in page


def test_scores_of_other_weights_are_not_shown(study_dir: Path) -> None:
    path = study_dir / "linear-s0" / "done.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "0" * 64}))
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert "its scores belong to other weights" in page
    assert number(score_of(study_dir, "linear-s0", "rfid_paper")) not in page


def test_a_study_of_older_code_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(REPOSITORY / "tests" / "golden" / "old_study" / "runs" / "old", folder)
    write_report(folder)
    page = (folder / "report.md").read_text()
    states = {row[0]: row[2] for row in table_rows(page.split("## FID")[0]) if row[0].endswith("-s0")}
    assert states == {"linear-s0": "done", "direct-s0": "stopped: training is at step 104 of 500"}
    rows = table_rows(page)
    assert ["linear-s0", "0.9038", "-", "0.9038", "1.000", "-", "1.000", "smoke, not comparable"] in rows


def test_an_empty_study_has_a_report(tmp_path: Path) -> None:
    prepare_study(tmp_path / "none", Study("none", ("linear-s0",)))
    page = HtmlReader(write_report(tmp_path / "none").read_text()).text
    no_times = "No attempt has left times yet"
    for text in ("it was never started", "No run has logged a loss yet", no_times, "at most about 2"):
        assert text in page


def test_two_studies_stand_beside_each_other(study_dir: Path) -> None:
    """A copy of a study scores as the study does: no difference, and nothing told apart."""
    other = study_dir.parent / "other"
    shutil.copytree(study_dir, other)
    done = run_door("report", "tiny", "other", "--runs-dir", study_dir.parent)
    path = study_dir.parent / "tiny+other" / "report.html"
    assert (done.returncode, Path(done.stdout.strip())) == (0, path), done.stderr
    assert "Studies tiny and other" in HtmlReader(path.read_text()).text
    page = path.with_suffix(".md").read_text()
    tables = page.split("## Variants beside each other")[1].split("\n## ")[0].split("\n\n")
    (pair,) = [table for table in tables if "tiny/linear-s0 | other/linear-s0" in table]
    rows = {row[0]: row for row in table_rows(pair)}
    assert (rows["PSNR (dB)"][3], rows["PSNR (dB)"][4]) == ("0.000 ± 0", "not told apart")
    assert "![reconstructions](<../other/linear-s0/figures/reconstructions.png>)" in page
    with path.with_name("scores.csv").open() as file:
        assert {row["study"] for row in csv.DictReader(file)} == {"tiny", "other"}


def test_one_study_beside_itself_is_refused(study_dir: Path) -> None:
    done = run_door("report", "tiny", study_dir, "--runs-dir", study_dir.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("error: two of the studies have one name")


def test_several_seeds_give_a_mean_and_a_deviation(study_dir: Path) -> None:
    shutil.rmtree(study_dir / "linear-s1")
    shutil.copytree(study_dir / "linear-s0", study_dir / "linear-s1")
    write_report(study_dir)
    rows = first_rows(study_dir)
    fid = number(score_of(study_dir, "linear-s0", "rfid_paper"))
    assert "up to 2 trainings of a variant" in (study_dir / "report.md").read_text()
    assert rows["linear, mean ± standard deviation of 2 seeds"][1] == f"{fid} ± 0"


def test_the_command_prints_the_path_and_imports_no_torch(study_dir: Path) -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "jobs/report.py",
        "tiny",
        "--runs-dir",
        str(study_dir.parent),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(study_dir / "report.html")
    assert not any(line.endswith("| torch") for line in done.stderr.splitlines())


def test_the_command_refuses_what_is_no_study_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs" / "none").mkdir(parents=True)  # beside tmp_path, other tests have runs
    done = run_door("report", tmp_path / "runs" / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no study")
