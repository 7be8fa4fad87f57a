"""scores.json as typed records: what older code wrote is read, and written again as it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY, child_environment

from data_prep.errors import DamagedFile
from data_prep.json_records import write_record
from vae.run_dir import SCORES_FILE
from vae.scoring.score_cards import ScoreCard, no_score, read_scores, score

OLD_RUN = REPOSITORY / "tests" / "golden" / "old_study" / "runs" / "old" / "linear-s0"


def test_scores_that_older_code_wrote_are_read_and_written_as_they_were(tmp_path: Path) -> None:
    scores = read_scores(OLD_RUN)
    assert scores is not None
    assert scores.value("ssim") == pytest.approx(0.0376912448)
    assert scores.value("absent") is None
    assert scores.scores["psnr"].card.n == 6
    write_record(tmp_path / SCORES_FILE, scores)
    written, old = (json.loads((path / SCORES_FILE).read_text()) for path in (tmp_path, OLD_RUN))
    assert written == {**old, "extent": "full"}  # there was no other
    assert read_scores(tmp_path) == scores


def test_scores_of_the_first_days_did_not_tell_the_memory(tmp_path: Path) -> None:
    content = json.loads((OLD_RUN / SCORES_FILE).read_text())
    del content["host_gb"]
    (tmp_path / SCORES_FILE).write_text(json.dumps(content))
    scores = read_scores(tmp_path)
    assert scores is not None
    assert scores.host_gb is None


def test_a_run_without_scores_has_none(tmp_path: Path) -> None:
    assert read_scores(tmp_path) is None


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{", "", "damaged: "),
        (
            '"value": 0.9037654705475012',
            '"value": "good"',
            "scores[...].value: Expected float | null, got str",
        ),
        ('"n_real": 6', '"n_read": 6', "scores[...].protocol: Object contains unknown field n_read"),
    ],
)
def test_a_file_with_anything_else_names_the_field_and_what_to_do(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    path = tmp_path / SCORES_FILE
    path.write_text((OLD_RUN / SCORES_FILE).read_text().replace(old, new, 1))
    with pytest.raises(DamagedFile) as caught:
        read_scores(tmp_path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert problem in str(caught.value)
    assert "python jobs/evaluate.py" in caught.value.hint


def test_a_number_that_is_not_finite_becomes_a_reason() -> None:
    card = ScoreCard(n=3)
    assert score("psnr", float("nan"), card) == no_score("the result is not finite (nan)", card)
    assert score("psnr", 31.5, card).unit == "dB"


def test_a_card_tells_only_what_applies() -> None:
    assert ScoreCard(n_real=0, images="samples", exact_value=0.5).facts() == {
        "n_real": "0",
        "images": "samples",
        "exact_value": "0.5",
    }


def test_reading_scores_imports_no_torch() -> None:
    code = "import sys, vae.scoring.score_cards, vae.report.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=child_environment(), check=True)
