"""Settings: read what was written, refuse what no run can use, answer without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import child_environment

from data_prep.errors import SettingsError
from vae.config import RunConfig, differences, from_dict, read_settings, write_settings


def test_written_settings_come_back_equal(tmp_path: Path) -> None:
    config = RunConfig(
        variant="spatial", widths=(8, 16), lr=3e-4, trackers=("tensorboard", "wandb"), data="a b"
    )
    write_settings(config, tmp_path / "run.yaml")
    assert read_settings(RunConfig, tmp_path / "run.yaml") == config


def test_short_floats_are_numbers(tmp_path: Path) -> None:
    """YAML's own reader takes 1e-4 for text."""
    (tmp_path / "run.yaml").write_text("lr: 1e-4\n")
    assert read_settings(RunConfig, tmp_path / "run.yaml").lr == 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"lr": "fast"}, "lr"),
        ({"lr": 0}, "lr = 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"epochs": 0}, "epochs = 0; allowed: at least 1"),
        ({"variant": "deep"}, "variant"),
        ({"beta": -1}, "beta = -1"),
        ({"image_size_px": 100}, "multiple of 16"),
        ({"widths": []}, "widths"),
        ({"widths": [4, 0]}, "widths"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_in_one_line(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        from_dict(RunConfig, values, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "a: [", "\x00", "just text"])
def test_files_that_are_no_settings_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(SettingsError, match=r"run\.yaml"):
        read_settings(RunConfig, tmp_path / "run.yaml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        read_settings(RunConfig, tmp_path / "none.yaml")


def test_only_settings_that_decide_the_result_differ() -> None:
    old = RunConfig()
    assert differences(old, RunConfig(log_every_steps=1, accumulate=4, loader="host")) == []
    assert differences(old, RunConfig(lr=1e-2, seed=3)) == ["seed: 0 -> 3", "lr: 0.001 -> 0.01"]


def test_settings_are_read_without_torch() -> None:
    code = "import sys, vae.config, vae.study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=child_environment(), check=False).returncode == 0
