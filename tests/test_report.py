"""The report of a really trained and scored tiny study; it comes whatever is missing or damaged."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doors import run_door
from html_reader import HtmlReader
from tiny import REPOSITORY, child_environment

from vae.report.page import number
from vae.report.report import score_table, write_report
from vae.run_dir import DIGESTS_FILE
from vae.study import Study, prepare_study, read_study
from vae.training.trainer import train


def score_of(study_dir: Path, run: str, name: str) -> float:
    return json.loads((study_dir / run / "scores.json").read_text())["scores"][name]["value"]


def table_rows(page: str) -> list[list[str]]:
    """All table rows of report.md."""
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
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
        "Loss per image",
        "The first test images, up to 32",
        "linear-s0",
        "direct-s0",
        "linear-s0",
    ]


def first_rows(study_dir: Path) -> dict[str, list[str]]:
    """Rows of the table of FID and Inception score by their first cell."""
    page = (study_dir / "report.md").read_text()
    section = page.split("## FID and Inception score")[1].split("\n## ")[0]
    return {row[0]: row for row in table_rows(section)}


def test_a_score_stands_beside_that_of_real_images(study_dir: Path) -> None:
    write_report(study_dir)
    rows = first_rows(study_dir)
    for column, name in ((1, "rfid_paper"), (2, "gfid_paper"), (3, "is_reconstructions"), (4, "is_samples")):
        assert rows["linear-s0"][column] == number(score_of(study_dir, "linear-s0", name))
    assert rows["direct-s0"][2] == "-"
    assert rows["real images"][2] == number(score_of(study_dir, "linear-s0", "floor_paper"))


def relabel(study_dir: Path, label: str) -> None:
    """Make a study scored by Inception with weights that have that label."""
    path = study_dir / "study.yaml"
    path.write_text(path.read_text().replace("smoke", "inception"))
    for path in study_dir.glob("*/scores.json"):
        path.write_text(path.read_text().replace("smoke, not comparable", label))
        (path.parent / DIGESTS_FILE).unlink()


def test_published_figures_stand_beside_comparable_scores(study_dir: Path) -> None:
    relabel(study_dir, "")
    assert "can be compared with care" in HtmlReader(write_report(study_dir).read_text()).text
    rows = first_rows(study_dir)
    assert rows["published, first iteration (linear)"][1:5] == ["0.447", "-", "2.479", "-"]
    assert rows["published, second iteration (direct)"][1:5] == ["0.133", "-", "3.014", "-"]


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
    assert "No FID of samples, FID-2048 of samples and Inception score of samples for direct-s0: " in page


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
    for row in table_rows((study_dir / "report.md").read_text().split("## Where the time went")[0]):
        if row[0] in ("linear-s0", "direct-s0", "real images") and len(row) in (6, 8) and "done" not in row:
            assert row[-1] == label
    assert f"FID and IS here: {label}." in (study_dir / "report.html").read_text()
    assert score_table(study_dir, read_study(study_dir).runs).count(label) == 6
    with (study_dir / "scores.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if row["score"].startswith(("rfid", "gfid", "is_"))]
    assert len(lines) == 2 * 7
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
    assert ["linear-s0", "0.9038", "0.9038", "1.000", "1.000", "smoke, not comparable"] in rows


def test_an_empty_study_has_a_report(tmp_path: Path) -> None:
    prepare_study(tmp_path / "none", Study("none", ("linear-s0",)))
    page = HtmlReader(write_report(tmp_path / "none").read_text()).text
    no_times = "No attempt has left times yet"
    for text in ("it was never started", "No run has logged a loss yet", no_times, "at most about 2"):
        assert text in page


def test_several_seeds_give_a_mean_and_a_deviation(study_dir: Path) -> None:
    shutil.rmtree(study_dir / "linear-s1")
    shutil.copytree(study_dir / "linear-s0", study_dir / "linear-s1")
    write_report(study_dir)
    rows = first_rows(study_dir)
    fid = number(score_of(study_dir, "linear-s0", "rfid_paper"))
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
