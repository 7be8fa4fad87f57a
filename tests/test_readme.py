"""The README's commands work as they are written."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import REPOSITORY, SIZE_PX, TINY, child_environment

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
# The others need real X-rays, the internet or a cluster.
RUNNABLE = ("phantom:", "--dry-run")


def commands() -> list[str]:
    """Commands of the console blocks that need nothing but this repository, in order."""
    lines = [line[2:] for block in CONSOLE for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if any(word in line for word in RUNNABLE)]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = command.replace("python jobs/", f"{sys.executable} {REPOSITORY}/jobs/").split()
    return subprocess.run(
        words, cwd=folder, env=child_environment(), capture_output=True, text=True, check=False
    )


def stable(line: str) -> str:
    """A printed line without its spacing and without the fingerprint, in which library versions take part."""
    return re.sub(r"fingerprint (\w+|\.\.\.)", "fingerprint", " ".join(line.split()))


def test_first_screen_runs_in_order_and_prints_what_it_says(tmp_path: Path) -> None:
    assert len(commands()) == 2
    printed = ""
    for command in commands():
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed += done.stdout
    squeezed = {stable(line) for line in printed.splitlines()}
    shown = [line for line in CONSOLE[0].splitlines() if not line.startswith(("$", "..."))]
    assert len(shown) > 3
    for line in shown:
        assert stable(line) in squeezed


def test_a_trained_model_is_used_as_it_says(
    tmp_path: Path, scored_study: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(scored_study)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "phantom-128").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), known)
    shapes = {
        name: tuple(known[name].shape) for name in ("images", "mean", "log_variance", "copies", "drawn")
    }
    images, latents = (8, 1, SIZE_PX, SIZE_PX), (8, TINY["latent_dim"])
    assert shapes == {
        "images": images,
        "mean": latents,
        "log_variance": latents,
        "copies": images,
        "drawn": (4, *images[1:]),
    }
    for name in ("images", "copies", "drawn"):
        assert 0 <= known[name].min() <= known[name].max() <= 1
    assert known["done"].step == 24


@pytest.mark.parametrize("door", sorted(set(re.findall(r"python (jobs/\w+\.py)", README))))
def test_every_command_explains_itself(door: str) -> None:
    done = run(f"python {door} --help", REPOSITORY)
    assert done.returncode == 0
    assert "examples:" in done.stdout


def test_every_front_door_is_in_the_readme() -> None:
    doors = {path.name for path in (REPOSITORY / "jobs").glob("[a-z]*.py")}
    assert doors == set(re.findall(r"jobs/(\w+\.py)", README))
