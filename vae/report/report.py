"""The report of a study: report.html (one file), report.md and scores.csv, from the files of its runs.

It always comes: a run that is not trained or not scored is in it, with the reason. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.files import write_text
from vae.report.cards_section import cards_section, scores_csv
from vae.report.diagnosis_section import diagnosis_section
from vae.report.figures_section import figures_section, intervals_picture
from vae.report.page import to_html, to_markdown, to_text
from vae.report.provenance_section import provenance_section, settings_section
from vae.report.run_summary import RunSummary, read_summary
from vae.report.runs_section import runs_section, title_section
from vae.report.scores_section import scores_section, section_table
from vae.report.times_section import times_section
from vae.report.verdict_section import differences_section, verdict_section
from vae.run_dir import REPORT_FILE, REPORT_MARKDOWN_FILE, SCORES_CSV_FILE
from vae.scoring.score_specs import Section
from vae.study import read_study

IN_TERMINAL = (Section.PAPER, Section.RECONSTRUCTION, Section.GENERATION)


def write_report(study_dir: Path, run: str = "") -> Path:
    """Write report.md, scores.csv, report.html of a study, or one `run`, in its folder; the last path."""
    study = read_study(study_dir)
    runs = [read_summary(study_dir / name) for name in ([run] if run else study.runs)]
    title = f"Run {run}" if run else f"Study {study.name}"
    return _write(study_dir / run, title, study.name, runs)


def write_comparison(study_dirs: Sequence[Path], folder: Path) -> Path:
    """Write the report of the runs of several studies in a folder of its own; the path of report.html."""
    runs = [
        replace(read_summary(study_dir / name), study=study_dir.name)
        for study_dir in study_dirs
        for name in read_study(study_dir).runs
    ]
    folder.mkdir(parents=True, exist_ok=True)
    names = " and ".join(study_dir.name for study_dir in study_dirs)
    return _write(folder, f"Studies {names}", folder.name, runs)


def _write(folder: Path, title: str, study: str, runs: list[RunSummary]) -> Path:
    blocks = [
        *title_section(title, runs),
        *verdict_section(runs),
        *runs_section(runs),
        *scores_section(runs),
        *diagnosis_section(runs),
        *intervals_picture(folder, runs),
        *differences_section(runs),
        *figures_section(folder, runs),
        *times_section(runs),
        *settings_section(runs),
        *provenance_section(runs),
        *cards_section(runs),
    ]
    write_text(folder / SCORES_CSV_FILE, scores_csv(study, runs))
    write_text(folder / REPORT_MARKDOWN_FILE, to_markdown(blocks, folder))
    path = folder / REPORT_FILE
    write_text(path, to_html(title, blocks))
    return path


def score_table(study_dir: Path, names: Sequence[str]) -> str:
    """The scores of some runs of a study as text for a terminal."""
    runs = [read_summary(study_dir / name) for name in names]
    tables = [to_text(section_table(runs, section)) for section in IN_TERMINAL]
    reasons = [f"{run.name}: {run.state}: {run.reason}" for run in runs if run.reason]
    return "\n\n".join([*tables, "\n".join(reasons)]).rstrip()
