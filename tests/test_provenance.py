"""Where a result comes from can be read from it."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_lines

from vae import provenance
from vae.metrics import SaveLine, StartLine
from vae.provenance import Attempt, CodeVersion
from vae.study import add_launch


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one committed file, taken for the toolkit's own."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    monkeypatch.setattr(provenance, "REPOSITORY", folder)
    return folder


def test_clean_checkout_is_its_commit(checkout: Path) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert provenance.code_version() == CodeVersion(head.stdout.strip())


def test_changes_on_top_are_kept_as_a_diff(checkout: Path) -> None:
    (checkout / "a.py").write_text("x = 2\n")
    code = provenance.code_version()
    assert "+x = 2" in code.diff
    assert code.diff_sha256 == hashlib.sha256(code.diff.encode()).hexdigest()


def test_code_outside_git_says_so(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert provenance.code_version() == CodeVersion("unknown: not a git checkout")


def test_attempts_add_up_and_count_the_restarts(tmp_path: Path) -> None:
    assert provenance.record_attempt(tmp_path, "f" * 64, Attempt(job="7")) == 0
    assert provenance.record_attempt(tmp_path, "f" * 64, Attempt(job="8")) == 1
    written = json.loads((tmp_path / "provenance.json").read_text())
    assert [attempt["job"] for attempt in written["attempts"]] == ["7", "8"]
    assert written["data_fingerprint"] == "f" * 64
    assert written["versions"]["python"].startswith("3.")


def test_a_job_is_traced_to_the_launch_that_started_it(tmp_path: Path) -> None:
    add_launch(tmp_path, ["python", "jobs/launch.py", "--gpus", "4"], ["a", "b"])
    add_launch(tmp_path, ["python", "jobs/launch.py", "--gpus", "2"], ["b"])
    assert provenance.command_of(tmp_path / "a", Attempt(job="7"))[-1] == "4"
    assert provenance.command_of(tmp_path / "b", Attempt(job="8"))[-1] == "2"
    assert provenance.command_of(tmp_path / "a", Attempt()) == tuple(sys.argv)  # started by hand
    assert provenance.command_of(tmp_path / "c", Attempt(job="9")) == tuple(sys.argv)


def test_what_an_attempt_did_is_noted_when_the_next_one_begins(tmp_path: Path) -> None:
    """The second attempt died before it wrote a line: what is there is still the first's, noted once."""
    write_lines(
        tmp_path,
        StartLine(step=0, time=110.0, total_steps=9, steps_per_epoch=9),
        SaveLine(step=7, time=117.0, seconds=0.0, train_s=7.0),
    )
    for started_s in (100.0, 120.0, 130.0):
        provenance.record_attempt(tmp_path, "f" * 64, Attempt(started_s=started_s))
    first, second, third = json.loads((tmp_path / "provenance.json").read_text())["attempts"]
    assert (first["work"]["reached_step"], first["work"]["train_s"]) == (7, 7.0)
    assert "work" not in second
    assert "work" not in third
