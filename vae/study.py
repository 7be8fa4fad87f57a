"""A study: a folder of runs that are compared with each other, how to find it, and what is already there.

runs/<study>/study.yaml            this file's Study
runs/<study>/launches.jsonl        every command that started work on it
runs/<study>/<variant>-s<seed>/    one run; vae/run_dir.py names every file in it

Readers raise DamagedFile, or SettingsError for YAML, where a file is not what this toolkit has written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product, starmap
from pathlib import Path
from typing import Literal

import msgspec

from data_prep.errors import DamagedFile, RunError, SettingsError
from data_prep.json_records import Record, append_line, read_lines
from vae.config import RunConfig, differences, read_settings, write_settings
from vae.digests import Losses, find_losses
from vae.run_dir import (
    DONE_FILE,
    LAUNCHES_FILE,
    REPORT_FILE,
    RUN_FILE,
    SCORES_FILE,
    STUDY_FILE,
    check_name,
    read_done,
    read_scores_summary,
)


class Launch(Record, frozen=True):
    """One line of launches.jsonl."""

    time: str
    command: list[str]
    """The words that were typed."""
    runs: list[str]
    """The runs it started work on."""


@dataclass(frozen=True)
class Study:
    """Which runs belong together, and how they are scored."""

    name: str
    """Folder name under the runs folder; letters, digits, dot, dash and underscore."""

    runs: tuple[str, ...] = ()
    """Run folder names, in the order of the report."""

    extractor: str = "inception"
    """inception: torchvision Inception v3, the published one; smoke: tiny seeded network, not comparable."""

    inception_weights: str = ""
    """File with Inception v3 weights; empty = torch's hub cache."""

    scores: Literal["full", "fast"] = "full"
    """fast leaves out what takes long: sampled latents, and the draws that tell how sure the floor is."""


def is_study(folder: Path) -> bool:
    """Whether a folder holds study.yaml, or runs that were trained by hand."""
    return (folder / STUDY_FILE).exists() or any(folder.glob(f"*/{RUN_FILE}"))


def read_study(study_dir: Path) -> Study:
    """study.yaml, or else the runs in the folder, scored as they were; SettingsError if there are none."""
    path = study_dir / STUDY_FILE
    if path.exists():
        study = read_settings(Study, path)
        for run in study.runs:
            check_name(run, f"{path}: the name of a run")
        return study
    runs = tuple(sorted(path.parent.name for path in study_dir.glob(f"*/{RUN_FILE}")))
    if not runs:
        hint = "a study is a folder of runs, made by `jobs/launch.py`"
        raise SettingsError(f"no study at {study_dir}", hint)
    for run in runs:
        with suppress(DamagedFile):  # it is shown as such
            if summary := read_scores_summary(study_dir / run):
                extent: Literal["full", "fast"] = "fast" if summary.extent == "fast" else "full"
                return Study(study_dir.name, runs, summary.extractor, "", extent)
    return Study(study_dir.name, runs)


def read_run(run_dir: Path) -> RunConfig:
    """Read a run's run.yaml; SettingsError if there is none."""
    path = run_dir / RUN_FILE
    if not path.exists():
        hint = "a run is a folder with a run.yaml, made by `jobs/launch.py`"
        raise SettingsError(f"no run at {run_dir}", hint)
    return read_settings(RunConfig, path)


def prepare_run(run_dir: Path, config: RunConfig) -> None:
    """Write run.yaml, or accept the one that is there if `check_run` does."""
    if check_run(run_dir, config) != config:
        write_settings(config, run_dir / RUN_FILE)


def check_run(run_dir: Path, config: RunConfig) -> RunConfig | None:
    """The settings of the run in `run_dir`, if any; RunError if `config` would give another result."""
    if not (run_dir / RUN_FILE).exists():
        return None
    present = read_run(run_dir)
    if changed := differences(present, config):
        raise RunError(
            f"{run_dir} holds a run with other settings: " + "; ".join(changed),
            "use another folder (jobs/launch.py: another --study), or the settings above on the left",
        )
    return present


def prepare_study(study_dir: Path, study: Study) -> Study:
    """Write study.yaml; runs that are already in the study stay in it. Returns what was written."""
    study = with_earlier_runs(study_dir, study)
    path = study_dir / STUDY_FILE
    if not path.exists() or read_study(study_dir) != study:
        write_settings(study, path)
    return study


def with_earlier_runs(study_dir: Path, study: Study) -> Study:
    """`study` with the runs that the folder already holds before its own: their numbers never change."""
    if not (study_dir / STUDY_FILE).exists():
        return study
    earlier = read_study(study_dir).runs
    return replace(study, runs=earlier + tuple(run for run in study.runs if run not in earlier))


def check_replacement(study_dir: Path, study: Study, names: Sequence[str]) -> None:
    """Raise SettingsError where scores that say something would give way to those of the smoke network."""
    for name in names if study.extractor == "smoke" else ():
        with suppress(DamagedFile):  # nothing is lost then
            summary = read_scores_summary(study_dir / name)
            if summary and summary.extractor != "smoke":
                raise SettingsError(
                    f"{study_dir / name} has scores by {summary.extractor}; smoke scores would replace them",
                    "use another study; or, to lose them, jobs/evaluate.py with --replace",
                )


def is_trained(run_dir: Path) -> bool:
    """Whether the run is complete, done.json being its last, atomic act, and its weights are still there."""
    done = read_done(run_dir)
    return done is not None and not find_losses(run_dir, done).weights


def is_scored(run_dir: Path, study: Study) -> bool:
    """Whether scores.json belongs to the finished weights and the study's extractor, and nothing is lost."""
    done, summary = read_done(run_dir), read_scores_summary(run_dir)
    has_scores = (
        done is not None and summary is not None and summary.is_of(done, study.extractor, study.scores)
    )
    return has_scores and find_losses(run_dir, done) == Losses()


def add_launch(study_dir: Path, command: Sequence[str], runs: Sequence[str]) -> None:
    """Remember a command, word by word, that is about to start work on `runs`; one launcher at a time."""
    launch = Launch(time.strftime("%Y-%m-%dT%H:%M:%S%z"), list(command), list(runs))
    append_line(study_dir / LAUNCHES_FILE, launch)


def read_launches(study_dir: Path, run: str = "") -> list[Launch]:
    """The launches of a study, or those that started work on one run, oldest first."""
    launches = read_lines(study_dir / LAUNCHES_FILE, msgspec.json.Decoder(Launch))
    return [launch for launch in launches if not run or run in launch.runs]


def has_report(study_dir: Path, study: Study) -> bool:
    """Whether the report is there and newer than everything it tells of."""
    files = starmap(study_dir.joinpath, product(study.runs, (DONE_FILE, SCORES_FILE)))
    times = [path.stat().st_mtime for path in files if path.exists()]
    report = study_dir / REPORT_FILE
    return report.exists() and report.stat().st_mtime >= max(times, default=0.0)


def find_study(name_or_path: str, runs_dir: Path) -> Path:
    """Folder of the study that a user named: a path, or a name under the runs folder; else SettingsError."""
    for folder in (Path(name_or_path), runs_dir / name_or_path):
        if is_study(folder):
            return folder.resolve()
    names = ", ".join(path.name for path in find_studies(runs_dir)) or "none"
    hint = "give a study's name, or its folder"
    raise SettingsError(f"no study {name_or_path!r}. Known in {runs_dir}: {names}.", hint)


def find_studies(runs_dir: Path) -> list[Path]:
    """The studies in a runs folder, by name."""
    return sorted(path for path in runs_dir.glob("*") if is_study(path))


def find_target(name_or_path: str, runs_dir: Path) -> tuple[Path, str]:
    """Study folder and run name of what a user named: a study as above (no run name), or `STUDY/RUN`."""
    for folder in (Path(name_or_path), runs_dir / name_or_path):
        path = folder.resolve()
        if not is_study(path) and is_study(path.parent):
            runs = read_study(path.parent).runs
            if path.name in runs:
                return path.parent, path.name
            raise SettingsError(f"no run {path.name!r} in {path.parent}", f"its runs are {', '.join(runs)}")
    return find_study(name_or_path, runs_dir), ""
