"""slurm/code_snapshot.py: what was launched is what runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY

from slurm.code_snapshot import PLUGIN, take_snapshot
from vae.run_dir import CODE_DIR

CODE = {
    "vae/model.py": "LAYERS = 4\n",
    "slurm/scripts/train.sbatch": "srun\n",
    "jobs/launch.py": "\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository, with files that are not code beside it."""
    for name, text in {
        **CODE,
        "vae/notes.txt": "x",
        "slurm/profiles/site.yaml": "partition: gpu\n",
        "runs/x/code.py": "x",
        "vae/__pycache__/m.pyc": "x",
    }.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(text)
    return tmp_path / "repository"


def test_the_copy_holds_the_code_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path, repository)
    assert not (tmp_path / CODE_DIR).exists()
    snapshot.write()
    copied = {str(path.relative_to(snapshot.folder)) for path in snapshot.folder.rglob("*") if path.is_file()}
    assert copied == {*CODE, *PLUGIN, "snapshot.json"}
    assert (snapshot.folder / "vae" / "model.py").read_text() == "LAYERS = 4\n"
    assert [path.name for path in (tmp_path / CODE_DIR).iterdir()] == [snapshot.folder.name]


def test_same_code_same_folder_and_any_change_another(repository: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path, repository)
    first.write()
    stamp = (first.folder / "snapshot.json").stat().st_mtime_ns
    again = take_snapshot(tmp_path, repository)
    again.write()
    assert again.folder == first.folder
    assert (first.folder / "snapshot.json").stat().st_mtime_ns == stamp
    (repository / "vae" / "model.py").write_text("LAYERS = 5\n")
    edited = take_snapshot(tmp_path, repository)
    edited.write()
    assert edited.folder != first.folder
    assert (first.folder / "vae" / "model.py").read_text() == "LAYERS = 4\n"
    (repository / "vae" / "model.py").rename(repository / "vae" / "models.py")
    assert take_snapshot(tmp_path, repository).folder.name not in {first.folder.name, edited.folder.name}


def test_a_profile_that_is_added_is_no_other_code(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    take_snapshot(tmp_path, repository).write()
    (repository / "slurm" / "profiles" / "mine.yaml").write_text("partition: gpu\n")
    take_snapshot(tmp_path, repository).write()
    assert len(list((tmp_path / CODE_DIR).iterdir())) == 1
    assert caplog.messages == []


def test_code_in_the_copy_knows_what_was_launched(tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path)
    snapshot.write()
    snapshot_json = json.loads((snapshot.folder / "snapshot.json").read_text())
    ask = (
        "import json, msgspec, vae.provenance as p; "
        "print(json.dumps([str(p.REPOSITORY), msgspec.to_builtins(p.code_version())]))"
    )
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, cwd=snapshot.folder, capture_output=True, check=True)
    folder, code = json.loads(done.stdout)
    assert folder == str(snapshot.folder)
    assert code == snapshot_json
    assert code["snapshot"] == snapshot.folder.name
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    assert code["commit"] == (head.stdout.strip() or "unknown: not a git checkout")
