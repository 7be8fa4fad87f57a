"""Whatever stands in a file of a study: commands answer in plain lines, and other runs show as they did."""

from pathlib import Path

import pytest
from doors import Result, run_door
from fake_slurm import FakeSlurm
from tiny import finish, make_run, score, write_attempts, write_lines

from data_prep.errors import SettingsError
from slurm.job_records import JobRecord, add_record
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.config import RunConfig, read_settings
from vae.events import Saved, add_event
from vae.metrics import StartLine
from vae.provenance import Attempt
from vae.run_dir import (
    DIGESTS_FILE,
    DONE_FILE,
    EVENTS_FILE,
    JOBS_FILE,
    LAUNCHES_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    RUN_FILE,
    SCORES_FILE,
    STUDY_FILE,
)
from vae.study import Study, add_launch, prepare_study

OF_A_RUN = (DONE_FILE, SCORES_FILE, METRICS_FILE, EVENTS_FILE, PROVENANCE_FILE, RUN_FILE, DIGESTS_FILE)
OF_A_STUDY = (JOBS_FILE, LAUNCHES_FILE, STUDY_FILE)
CONTENTS = {
    "nothing": b"",
    "a byte that is no text": b"\xff\n",
    "a byte order mark": b"\xef\xbb\xbf{}\n",
    "brackets without end": b"[" * 100_000,
    "objects without end": b'{"a":' * 50_000 + b"\n",
    "another object": b'{"a": 1}\n',
    "a list": b"[1]\n",
    "null": b"null\n",
    "a line cut off": b'{"jobs": [{"id": "8", "kin',
    "numbers too large": b'{"kind":"step","step":1' + b"0" * 400 + b',"time":1e999}\n',
    "a lone surrogate": b'{"a": "\\ud800\\udc"}\n',
    "zeros": b"\0" * 1000,
}


@pytest.fixture
def study_dir(tmp_path: Path, shards: Path, fake_slurm: FakeSlurm) -> Path:
    """Two runs that are done, with a file of every kind, beside another study."""
    folder, other = tmp_path / "runs" / "chest", tmp_path / "runs" / "other"
    study = Study("chest", ("linear-s0", "direct-s0"), "smoke")
    prepare_study(folder, study)
    prepare_study(other, Study("other", ("linear-s0",), "smoke"))
    add_record(folder, JobRecord("8", JobKind.TRAIN, Backend.SLURM, True, (0, 1), "login"))
    add_launch(folder, ["python", "jobs/launch.py"], study.runs)
    for name in study.runs:
        run_dir = make_run(folder / name, shards, variant=name.split("-")[0])
        write_lines(run_dir, StartLine(step=0, total_steps=8, steps_per_epoch=4))
        write_attempts(run_dir, Attempt(job="8_0", from_step=0))
        add_event(run_dir, Saved(step=3, seconds=0.1))
        finish(run_dir)
        score(run_dir)
    return folder


def is_clear(result: Result) -> bool:
    """Whether a command ended as it should after a user's or a disk's mistake."""
    return result.returncode in (0, 2) and "Traceback" not in result.stderr


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", OF_A_RUN)
def test_a_damaged_file_of_one_run_takes_no_command_and_no_other_run_down(
    study_dir: Path, file: str, content: str
) -> None:
    (study_dir / "linear-s0" / file).write_bytes(CONTENTS[content])
    shown = {door: run_door(door, study_dir) for door in ("status", "why", "report")}
    assert {door: result.returncode for door, result in shown.items()} == dict.fromkeys(shown, 0), shown
    for result in shown.values():
        assert "Traceback" not in result.stderr
    assert any(line.startswith("direct-s0  done ") for line in shown["status"].stdout.splitlines())
    assert "direct-s0" in (study_dir / "report.md").read_text()
    everything = run_door("status", "--runs-dir", study_dir.parent)
    rows = [line.split()[0] for line in everything.stdout.splitlines()[1:]]
    assert (everything.returncode, rows) == (0, ["chest", "other"])


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", OF_A_STUDY)
def test_a_damaged_file_of_a_study_is_one_line_and_other_studies_show(
    study_dir: Path, file: str, content: str
) -> None:
    (study_dir / file).write_bytes(CONTENTS[content])
    for door in ("status", "why", "report", "cancel"):
        assert is_clear(run_door(door, study_dir)), (door, run_door(door, study_dir))
    everything = run_door("status", "--runs-dir", study_dir.parent)
    assert everything.returncode == 0
    assert everything.stdout.splitlines()[-1].startswith("other  ")


@pytest.mark.parametrize("file", OF_A_RUN)
def test_a_folder_in_the_place_of_a_file_is_told_too(study_dir: Path, file: str) -> None:
    path = study_dir / "linear-s0" / file
    path.unlink(missing_ok=True)
    path.mkdir()
    for door in ("status", "why", "report"):
        assert is_clear(run_door(door, study_dir)), run_door(door, study_dir)


NAMES = list(RunConfig.__dataclass_fields__)
# Short, and 10**9 words where it is written out.
REFERENCES = "\n".join(
    [
        f"{NAMES[0]}: &a0 [{', '.join('xxxxxxxxxx')}]",
        *(f"{NAMES[n]}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)),
    ]
)
BOMBS = {
    "lists": "[" * 100_000,
    "objects": "{a: " * 50_000,
    "dashes": "- " * 50_000,
    "keys": "? " * 50_000,
    "references": REFERENCES,
    "itself": "lr: &a [*a]",
    "digits": "seed: " + "9" * 5000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_settings_that_are_a_bomb_are_refused_in_one_short_line(tmp_path: Path, text: str) -> None:
    """PyYAML's loader in C would overflow its stack at the first, and end the process."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_settings(RunConfig, path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 400
    assert "\n" not in str(caught.value)
