"""What a drill is asked to do: what launch and its user get of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from doors import run_door

from data_prep.errors import SettingsError
from data_prep.manifest import MANIFEST_FILE, read_manifest
from slurm.drill.options import DrillOptions, prepare_data
from slurm.node.environment import Backend
from slurm.plan import Resources


@pytest.fixture
def options(tmp_path: Path, shards: Path) -> DrillOptions:
    return DrillOptions("direct", Resources(1, 1), shards, 4, 1, Backend.LOCAL, "", tmp_path / "runs")


def test_launch_takes_the_flags_of_a_drill(options: DrillOptions, tmp_path: Path) -> None:
    both = replace(options, variant="both", resources=Resources(2, 1))
    shown = run_door("launch", *both.launch_flags(), "--study=dry", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "train: linear-s0, direct-s0" in shown.stdout
    assert "--run.max_steps=1500 --run.batch_size=8" in " ".join(both.launch_flags())  # two faults each


def test_a_drill_says_how_long_it_takes(options: DrillOptions) -> None:
    assert options.expectation() == "4 interruptions on this machine: about 2 minutes"
    on_slurm = replace(options, backend=Backend.SLURM, variant="both", count=5).expectation()
    assert on_slurm.startswith("5 interruptions, 3 of each run: 5 to 12 minutes where jobs start at once")


def test_images_are_the_users_or_made_up(tmp_path: Path, shards: Path) -> None:
    assert prepare_data(str(shards), tmp_path / "out") == shards
    out = prepare_data("phantom:16", tmp_path / "made" / "up")
    assert read_manifest(out).image_size_px == 32
    written = (out / MANIFEST_FILE).stat().st_mtime_ns
    assert prepare_data("phantom:16", out) == out
    assert (out / MANIFEST_FILE).stat().st_mtime_ns == written
    with pytest.raises(SettingsError, match="--data nowhere: no packed images there"):
        prepare_data("nowhere", out)


def test_a_mistake_is_said_before_anything_starts(tmp_path: Path) -> None:
    for words, message in (
        (("--gpus", "3", "--nodes", "2"), "error: --gpus 3 cannot be spread evenly over --nodes 2"),
        (("--data", "nowhere"), "error: --data nowhere: no packed images there"),
        (("--count", "0"), "error: --count 0; allowed: at least 1"),
        (("--seed", "-1"), "error: --seed -1; allowed: 0 or more"),
    ):
        done = run_door("drill", "--cluster", "local", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, message)
    assert not list(tmp_path.iterdir())
