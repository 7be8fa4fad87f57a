"""jobs/evaluate.py: what is due is scored, the rest is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY, child_environment


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/evaluate.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=False
    )


@pytest.fixture
def study_dir(scored_study: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tiny"
    shutil.copytree(scored_study, copy)
    return copy


def test_one_run_is_named_as_everywhere_else(study_dir: Path) -> None:
    kept, other = study_dir / "linear-s0" / "scores.json", study_dir / "direct-s0" / "scores.json"
    before, modified = kept.stat().st_mtime_ns, other.stat().st_mtime_ns
    done = evaluate("tiny/linear-s0", "--runs-dir", study_dir.parent)
    assert done.returncode == 0, done.stderr
    assert kept.stat().st_mtime_ns > before
    assert other.stat().st_mtime_ns == modified
    assert "direct-s0" not in done.stdout


def test_of_a_study_what_lacks_scores_is_scored_and_the_table_is_printed(study_dir: Path) -> None:
    kept, lost = study_dir / "linear-s0" / "scores.json", study_dir / "direct-s0" / "scores.json"
    before, modified = json.loads(lost.read_text()), kept.stat().st_mtime_ns
    lost.unlink()
    done = evaluate("tiny", "--runs-dir", study_dir.parent)
    assert done.returncode == 0, done.stderr
    again = json.loads(lost.read_text())["scores"]
    assert again.keys() == before["scores"].keys()
    for name, score in again.items():
        known = before["scores"][name]["value"]
        # rounding differs with the number of threads that a busy machine gives
        assert score["value"] == (None if known is None else pytest.approx(known, rel=1e-6, abs=1e-9)), name
    assert kept.stat().st_mtime_ns == modified
    assert "linear-s1: not finished: training is at step 6 of 24" in done.stdout
    assert done.stdout.count("smoke, not comparable") == 6
    assert "direct-s0: reconstructions: 13 of 13 images" in done.stderr


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
def test_mistakes_are_told_in_one_line(scored_study: Path, arguments: list[str], message: str) -> None:
    done = evaluate(scored_study / arguments[0], *arguments[1:])
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
