"""The report of a study: report.html (one file), report.md and scores.csv, from the files of its runs.

It always comes: a run that is not trained or not scored is in it, with the reason. Imports no torch.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.files import write_text
from vae.report.figures_section import figures_section
from vae.report.page import to_html, to_markdown, to_text
from vae.report.provenance_section import provenance_section, settings_section
from vae.report.run_summary import read_summary
from vae.report.runs_section import runs_section
from vae.report.scores_section import cards_section, scores_csv, scores_section, section_table
from vae.report.times_section import times_section
from vae.run_dir import REPORT_FILE, REPORT_MARKDOWN_FILE, SCORES_CSV_FILE
from vae.scoring.score_specs import Section
from vae.study import read_study


def write_report(study_dir: Path, run: str = "") -> Path:
    """Write report.md, scores.csv, report.html of a study, or one `run`, in its folder; the last path."""
    study = read_study(study_dir)
    runs = [read_summary(study_dir / name) for name in ([run] if run else study.runs)]
    folder, title = study_dir / run, f"Run {run}" if run else f"Study {study.name}"
    blocks = [
        *runs_section(title, runs),
        *scores_section(runs, is_smoke=study.extractor == "smoke"),
        *figures_section(folder, runs),
        *times_section(runs),
        *settings_section(runs),
        *provenance_section(runs),
        *cards_section(runs),
    ]
    write_text(folder / SCORES_CSV_FILE, scores_csv(study.name, runs))
    write_text(folder / REPORT_MARKDOWN_FILE, to_markdown(blocks, folder))
    path = folder / REPORT_FILE
    write_text(path, to_html(title, blocks))
    return path


def score_table(study_dir: Path, names: Sequence[str]) -> str:
    """The scores of some runs of a study as text for a terminal."""
    runs = [read_summary(study_dir / name) for name in names]
    tables = [to_text(section_table(runs, section)) for section in (Section.PAPER, Section.OTHER)]
    reasons = [f"{run.name}: {run.state}: {run.reason}" for run in runs if run.reason]
    return "\n\n".join([*tables, "\n".join(reasons)]).rstrip()
