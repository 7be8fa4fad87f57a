"""A study is the state on disk: what is there stays, what contradicts it is refused."""

import json
import os
from pathlib import Path

import pytest
from doors import run_door
from tiny import finish

from data_prep.errors import DamagedFile, RunError, SettingsError
from vae.config import RunConfig
from vae.report.report import write_report
from vae.run_dir import check_name, run_name
from vae.study import (
    Study,
    add_launch,
    find_study,
    has_report,
    is_scored,
    is_trained,
    prepare_run,
    prepare_study,
    read_launches,
    read_run,
    read_study,
)


@pytest.mark.parametrize("name", ["a", "2024-06.run_1", "x" * 64])
def test_plain_names_are_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-rf", "a b", "a/b", "..", "a\n#SBATCH", "a;b", "$(x)", "x" * 65, "é"])
def test_names_that_a_shell_or_slurm_could_misread_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="study name"):
        check_name(name)


@pytest.mark.parametrize(
    "run", ["../outside", "/tmp/outside", "a/b", "..", ".", "", "a\nb", "-rf", ".features", "x" * 65]
)
def test_a_study_whose_runs_are_not_plain_names_is_refused_and_nothing_is_written_outside(
    tmp_path: Path, run: str
) -> None:
    study_dir = tmp_path / "runs" / "chest"
    prepare_study(study_dir, Study("chest", ("linear-s0", run), "smoke"))
    finish(tmp_path / "runs" / "outside")
    before = sorted(tmp_path.rglob("*"))
    for call in (read_study, lambda folder: prepare_study(folder, Study("chest")), write_report):
        with pytest.raises(SettingsError, match=r"study\.yaml: the name of a run .* is not allowed"):
            call(study_dir)
    for door in ("evaluate", "report", "status", "cancel", "why"):
        done = run_door(door, study_dir)
        assert (done.returncode, done.stdout) == (2, ""), door
        assert done.stderr.count("error: ") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_same_run_is_accepted_and_another_is_refused_with_the_difference(tmp_path: Path) -> None:
    run_dir = tmp_path / run_name("linear", 3)
    prepare_run(run_dir, RunConfig(seed=3))
    prepare_run(run_dir, RunConfig(seed=3, log_every_steps=50))
    assert read_run(run_dir).log_every_steps == 50
    with pytest.raises(RunError, match=r"lr: 0\.001 -> 0\.01"):
        prepare_run(run_dir, RunConfig(seed=3, lr=1e-2))
    assert read_run(run_dir).lr == 1e-3


def test_runs_of_an_earlier_launch_stay_in_the_study(tmp_path: Path) -> None:
    prepare_study(tmp_path, Study("s", runs=("linear-s0", "direct-s0")))
    prepare_study(tmp_path, Study("s", runs=("spatial-s0", "linear-s0")))
    assert read_study(tmp_path).runs == ("linear-s0", "direct-s0", "spatial-s0")


def test_folders_that_are_no_study_or_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no study at"):
        read_study(tmp_path)
    with pytest.raises(SettingsError, match="no run at"):
        read_run(tmp_path)


def test_a_study_without_its_name_says_so_in_the_words_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("runs: []\n")
    with pytest.raises(SettingsError, match=r"study\.yaml: the following arguments are required: name$"):
        read_study(tmp_path)


def test_scores_count_only_for_these_weights_and_this_extractor(tmp_path: Path) -> None:
    study = Study("s", extractor="smoke")
    (tmp_path / "scores.json").write_text(json.dumps({"checkpoint_sha256": "a", "extractor": "smoke"}))
    assert not is_scored(tmp_path, study)
    finish(tmp_path, "a")
    assert is_trained(tmp_path)
    assert is_scored(tmp_path, study)
    assert not is_scored(tmp_path, Study("s", extractor="inception"))
    finish(tmp_path, "b")
    assert not is_scored(tmp_path, study)


@pytest.mark.parametrize(
    "content", ["", '{"step": 1', "[1]", "\udc80", "[" * 100_000, "\ufeff{}", '{"a": 1}']
)
def test_a_marker_that_is_not_ours_is_one_line_that_names_the_file_and_what_to_do(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "done.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedFile, match=r"done\.json is damaged: ") as caught:
        is_trained(tmp_path)
    assert "\n" not in str(caught.value)
    assert "launch again" in str(caught.value.hint)


def test_launches_are_kept_in_order_and_a_broken_last_line_is_left_out(tmp_path: Path) -> None:
    assert read_launches(tmp_path) == []
    add_launch(tmp_path, ["a", "two words"], ["linear-s0"])
    add_launch(tmp_path, ["b"], [])
    with (tmp_path / "launches.jsonl").open("a") as file:
        file.write('{"time": "20')
    assert [launch.command for launch in read_launches(tmp_path)] == [["a", "two words"], ["b"]]
    assert [launch.command[0] for launch in read_launches(tmp_path, "linear-s0")] == ["a"]
    assert read_launches(tmp_path)[0].time[:2] == "20"


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    config, study = RunConfig(seed=3), Study("s", runs=("linear-s3",))
    prepare_run(tmp_path / "linear-s3", config)
    prepare_study(tmp_path, study)
    paths = [tmp_path / "study.yaml", tmp_path / "linear-s3" / "run.yaml"]
    before = [path.stat().st_ino for path in paths]
    prepare_run(tmp_path / "linear-s3", config)
    prepare_study(tmp_path, study)
    assert [path.stat().st_ino for path in paths] == before


def test_a_report_older_than_the_scores_is_out_of_date(tmp_path: Path) -> None:
    study = Study("s", ("linear-s0", "direct-s0"))
    assert not has_report(tmp_path, study)
    finish(tmp_path / "linear-s0")
    report = tmp_path / "report.html"
    report.write_text("")
    assert has_report(tmp_path, study)
    old = (tmp_path / "linear-s0" / "done.json").stat().st_mtime - 1
    os.utime(report, (old, old))
    assert not has_report(tmp_path, study)


def test_a_study_is_found_by_name_and_by_folder(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest"))
    assert find_study("chest", tmp_path) == tmp_path / "chest"
    assert find_study(str(tmp_path / "chest"), Path("elsewhere")) == tmp_path / "chest"
    with pytest.raises(SettingsError, match=r"no study 'cest'\. Known in .*: chest\."):
        find_study("cest", tmp_path)
