"""digests.json: every byte of a result is vouched for; what is lost shows, and exactly that is made again."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from doors import load_door, run_door
from fake_slurm import FakeSlurm
from html_reader import HtmlReader
from tiny import REPOSITORY, finish, score

from data_prep.errors import DamagedFile, RunError
from slurm.job_records import JobRecord, add_record
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from slurm.study_state import study_facts
from vae.digests import Digests, FileDigest, note_scored, read_digests, verify
from vae.report.report import write_report
from vae.report.run_summary import read_summary
from vae.run_dir import (
    CHECKPOINTS_DIR,
    DIGESTS_FILE,
    DONE_FILE,
    DRAWS_FILE,
    FEATURES_DIR,
    SCORES_FILE,
    WEIGHTS_FILE,
    checkpoint_dirs,
    figure_path,
    read_done,
    weights_name,
)
from vae.study import is_scored, is_trained, read_study
from vae.training.checkpoint import load_trained
from vae.training.trainer import train

RUN = "linear-s0"


def listed(run_dir: Path) -> dict[str, Path]:
    """The files that a run's list vouches for."""
    names = read_digests(run_dir).files
    return {name: (run_dir.parent if name.startswith(FEATURES_DIR) else run_dir) / name for name in names}


def weights_of(run_dir: Path) -> Path:
    done = read_done(run_dir)
    assert done is not None
    return run_dir / weights_name(done)


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# --- status --verify --------------------------------------------------------------------------------


def test_the_list_holds_all_that_a_result_consists_of(study_dir: Path) -> None:
    names = {re.sub(r"\w{32}", "KEY", name) for name in listed(study_dir / RUN)}
    checkpoint = f"{CHECKPOINTS_DIR}/step_00000024"
    assert names == {
        *(DONE_FILE, SCORES_FILE, DRAWS_FILE, f"{FEATURES_DIR}/KEY.safetensors"),
        *(f"{checkpoint}/{name}" for name in (WEIGHTS_FILE, "state.pt", "meta.json")),
        *(f"figures/{name}.png" for name in ("loss", "originals", "reconstructions", "samples", "worst")),
    }
    assert len(listed(study_dir / RUN)) == 17  # features of test images, and of training images


def test_a_whole_study_is_called_whole_and_writes_nothing(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    before = {path: path.stat().st_mtime_ns for path in study_dir.rglob("*")}
    shown = run_door("status", study_dir, "--verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.findall(r"^(\S+)  +(\d+)  (.*)$", shown.stdout, re.M) == [
        ("linear-s0", "17", "whole"),
        ("direct-s0", "16", "whole"),
        ("linear-s1", "0", "is not trained to the end"),
        ("direct-s1", "0", "is not trained to the end"),
    ]
    assert {path: path.stat().st_mtime_ns for path in study_dir.rglob("*")} == before
    assert fake_slurm.calls == []


def test_any_flipped_bit_is_found(study_dir: Path) -> None:
    """Every byte of done.json and of the list itself, and places all over the other files."""
    run_dir, dice = study_dir / RUN, random.Random(0)
    assert verify(run_dir).is_whole
    files = {**listed(run_dir), DIGESTS_FILE: run_dir / DIGESTS_FILE}
    for name, path in files.items():
        size = path.stat().st_size
        is_small = name in (DONE_FILE, DIGESTS_FILE)
        places = range(size) if is_small else [0, size - 1, *dice.sample(range(size), 30)]
        for place in places:
            bit = dice.randrange(8)
            flip(path, place, bit)
            assert not verify(run_dir).is_whole, (name, place, bit)
            flip(path, place, bit)
    assert verify(run_dir).is_whole


def test_what_is_lost_or_changed_is_named_with_the_next_step_and_in_the_exit_code(
    study_dir: Path,
) -> None:
    weights = weights_of(study_dir / RUN)
    flip(weights, weights.stat().st_size - 1, 3)
    figure_path(study_dir / "direct-s0", "loss").unlink()
    shown = run_door("status", study_dir, "--verify")
    assert shown.returncode == 1
    name = weights.relative_to(study_dir / RUN)
    assert f"{name} has changed; remove the run's done.json and launch again" in shown.stdout
    assert "figures/loss.png is lost; score it again: python jobs/evaluate.py" in shown.stdout
    assert run_door("status", study_dir / "linear-s1", "--verify").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--verify",), "--verify needs a study"), (("STUDY", "--verify", "--watch"), "do not go together")],
)
def test_verify_wants_a_study_and_does_it_once(study_dir: Path, words: tuple[str, ...], message: str) -> None:
    given = [str(study_dir) if word == "STUDY" else word for word in words]
    shown = run_door("status", *given)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert message in shown.stderr


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/done.json", "figures/../../x.png", "a.json", ""])
def test_the_list_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    finish(tmp_path)
    entry = {"bytes": 1, "sha256": "0" * 64}
    (tmp_path / DIGESTS_FILE).write_text(json.dumps({"trained": {name: entry}, "scored": {}}))
    with pytest.raises(DamagedFile, match=r"digests\.json is damaged: .* is not a file of a run"):
        read_digests(tmp_path)
    assert not verify(tmp_path).is_whole


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A pipe would be read for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert FileDigest(0, "0" * 64).damage(path, reads_all=True) == "has changed"


def test_a_run_of_older_code_says_that_it_carries_no_digests(tmp_path: Path) -> None:
    """But done.json vouches for its weights."""
    golden = REPOSITORY / "tests" / "golden" / "old_study" / "runs" / "old"
    old = Path(shutil.copytree(golden, tmp_path / "old"))
    shown = run_door("status", old, "--verify")
    assert shown.returncode == 0
    says = "carries no digests of its training, only that of its weights, carries no digests of its scores"
    assert re.search(rf"^linear-s0 +0  {says}$", shown.stdout, re.M)
    flip(weights_of(old / RUN), 2000, 0)
    shown = run_door("status", old, "--verify")
    assert shown.returncode == 1
    assert "is lost or has changed" in shown.stdout


# --- what status, why, report and evaluate say of it ------------------------------------------------


def test_a_run_of_older_code_whose_checkpoint_is_purged_has_lost_its_weights(tmp_path: Path) -> None:
    finish(tmp_path)
    assert is_trained(tmp_path)  # a copy of the results alone
    (tmp_path / CHECKPOINTS_DIR).mkdir()
    assert not is_trained(tmp_path)


@pytest.mark.parametrize("damage", ["purge", "truncate"])
def test_lost_weights_show_as_such_with_the_next_step(
    study_dir: Path, fake_slurm: FakeSlurm, damage: str
) -> None:
    weights = weights_of(study_dir / RUN)
    if damage == "purge":
        shutil.rmtree(study_dir / RUN / CHECKPOINTS_DIR)
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    what = f"{weights.relative_to(study_dir / RUN)} {'is lost' if damage == 'purge' else 'has changed'}"
    shown = run_door("status", study_dir).stdout
    assert re.search(rf"^linear-s0 +damaged .* {re.escape(what)}; launch again: what is lost", shown, re.M)
    assert re.search(r"^direct-s0 +done ", shown, re.M)
    why = run_door("why", study_dir).stdout
    assert f"linear-s0: {what}; launch again: what is lost is made again, and nothing else.\n" in why
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert f"damaged: {what}; launch again" in page
    assert not load_door("evaluate").is_due(study_dir / RUN, read_study(study_dir))
    alone = run_door("evaluate", study_dir / RUN)
    assert (alone.returncode, "Traceback" in alone.stderr) == (2, False)
    with pytest.raises(RunError, match="are missing or damaged"):
        load_trained(study_dir / RUN)


def test_lost_weights_that_are_being_trained_again_show_as_a_training(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    weights_of(study_dir / RUN).unlink()
    job = fake_slurm.submit("tiny-train", array="0")
    add_record(
        study_dir, JobRecord(job, JobKind.TRAIN, Backend.SLURM, True, (0,), "login", name="tiny-train")
    )
    assert re.search(r"^linear-s0 +queued ", run_door("status", study_dir).stdout, re.M)
    fake_slurm.start(f"{job}_0")
    assert re.search(r"^linear-s0 +training ", run_door("status", study_dir).stdout, re.M)
    assert re.search(
        rf"^linear-s0: is training .* in job {job}_0; nothing", run_door("why", study_dir).stdout, re.M
    )


def test_a_lost_figure_shows_and_the_report_marks_edited_scores(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    figure_path(study_dir / RUN, "samples").unlink()
    shown = run_door("status", study_dir).stdout
    assert re.search(r"^linear-s0 +trained .* figures/samples\.png is lost; launch again", shown, re.M)
    assert "linear-s0: figures/samples.png is lost; launch again" in run_door("why", study_dir).stdout
    path = study_dir / "direct-s0" / SCORES_FILE
    number = json.loads(path.read_text())["scores"]["rfid_2048"]["value"]
    edited = f"{number:.17g}"[:-1] + str((int(f"{number:.17g}"[-1]) + 1) % 10)
    path.write_text(path.read_text().replace(str(number), edited, 1))
    run = read_summary(study_dir / "direct-s0")
    assert run.state == "damaged"
    assert [change.partition(";")[0] for change in run.changes] == ["scores.json has changed"]
    shutil.rmtree(study_dir / FEATURES_DIR)  # which makes no score wrong
    page = HtmlReader(write_report(study_dir).read_text()).text
    assert page.count("changed after it was scored") == page.count("smoke, not comparable, changed after")
    assert "damaged: scores.json has changed; score it again" in page
    assert "smoke, not comparable, changed after it was scored" in page


def test_a_report_of_one_run_leaves_its_figures_as_they_were(study_dir: Path) -> None:
    write_report(study_dir, RUN)
    assert verify(study_dir / RUN).is_whole


# --- exactly what is lost is made again ---------------------------------------------------------------


def due(study_dir: Path) -> dict[str, tuple[bool, bool]]:
    """Of each run whether it counts as trained, and as scored."""
    study = read_study(study_dir)
    facts = study_facts(study_dir, study, study.runs, study_dir / "data", num_shards=None)
    return {run.name: (run.is_trained, run.is_scored) for run in facts.runs}


def test_a_launch_makes_exactly_what_is_lost_again(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    whole = {"linear-s0": (True, True), "direct-s0": (True, True)}
    rest = {"linear-s1": (False, False), "direct-s1": (False, False)}
    assert due(study_dir) == whole | rest
    figure_path(study_dir / RUN, "loss").unlink()
    assert due(study_dir) == whole | rest | {RUN: (True, False)}
    weights_of(study_dir / RUN).unlink()
    assert due(study_dir) == whole | rest | {RUN: (False, False)}
    shutil.rmtree(study_dir / FEATURES_DIR)  # a cache: made again when it is needed
    assert due(study_dir) == whole | rest | {RUN: (False, False)}


def test_a_training_whose_weights_are_lost_goes_on_from_an_older_checkpoint_to_the_same_weights(
    study_dir: Path,
) -> None:
    run_dir, study = study_dir / RUN, read_study(study_dir)
    before = read_done(run_dir)
    newest, older, *_ = checkpoint_dirs(run_dir)
    weights_of(run_dir).unlink()
    assert train(run_dir) is True
    assert read_done(run_dir) == before  # on one CPU bit for bit
    attempts = json.loads((run_dir / "provenance.json").read_text())["attempts"]
    assert (attempts[-1]["from_step"], newest) == (older, 24)
    assert is_scored(run_dir, study)  # the weights are those that were scored
    assert verify(run_dir).is_whole


def test_while_lost_weights_are_trained_again_the_run_is_not_complete(study_dir: Path) -> None:
    shutil.rmtree(study_dir / RUN / CHECKPOINTS_DIR)
    steps = iter(range(3))
    assert train(study_dir / RUN, lambda: next(steps, None) is None) is False
    assert read_done(study_dir / RUN) is None
    assert not is_trained(study_dir / RUN)


def test_a_damaged_list_is_one_line_and_is_written_anew_by_the_next_scoring(tmp_path: Path) -> None:
    finish(tmp_path)
    score(tmp_path)
    (tmp_path / DIGESTS_FILE).write_text("{")
    with pytest.raises(DamagedFile, match=r"digests\.json is damaged") as caught:
        is_trained(tmp_path)
    assert "remove it" in str(caught.value.hint)
    note_scored(tmp_path, Digests(), ())
    assert [*read_digests(tmp_path).scored] == [SCORES_FILE]
