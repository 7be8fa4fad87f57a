"""The report's pictures: loss curves of all runs, and test images beside what the runs make of them."""

from collections.abc import Sequence
from pathlib import Path

from vae.figures import Interval, Panel, write_intervals, write_loss_curves
from vae.report.page import Block, Heading, Picture, Text
from vae.report.run_summary import RunSummary
from vae.report.verdict_section import first_of_each_variant
from vae.run_dir import figure_path
from vae.scoring.score_specs import SPECS, Better, ScoreSpec, Section

LOSS_CAPTION = (
    "Loss per image: cross-entropy summed over pixels + beta x KL. Its minimum is not 0 but the entropy of "
    "the grey values. The first steps may lie above the frame."
)


IN_PICTURE = (Section.PAPER, Section.RECONSTRUCTION, Section.GENERATION)
BETTER = {Better.LOWER: "lower", Better.HIGHER: "higher", Better.NEITHER: "neither"}
INTERVALS_CAPTION = (
    "Scores with 90 % intervals over test patients; the grey bands are what real images score. Where two "
    "runs were scored on the same images, the table of differences tells them apart better than this does"
)
WORST = (
    "its worst ten by SSIM, the worst on the left; above the images, below them the reconstructions and the "
    "absolute errors, black where there is none"
)


def figures_section(folder: Path, runs: list[RunSummary]) -> list[Block]:
    """The loss curves, drawn into `folder`, and the images of each variant's first scored run."""
    path = figure_path(folder, "loss")
    is_there = [run.folder for run in runs if run.scores] == [folder] and path.is_file()  # drawn when scored
    has_losses = is_there or write_loss_curves(path, {run.name: run.metrics for run in runs})
    curves = Picture(path, LOSS_CAPTION) if has_losses else Text("No run has logged a loss yet.")
    blocks: list[Block] = [Heading("Loss curves"), curves, Heading("Images")]
    scored = [run for run in runs if run.scores]
    chosen = first_of_each_variant(scored)
    if not chosen:
        return [*blocks, Text("There are no images before a run is scored.")]
    blocks.append(_picture(chosen[0], "originals", "The first test images, up to 32"))
    caption = "reconstructions of the images above, in the same order"
    blocks += [_picture(run, "reconstructions", f"{run.name}: {caption}") for run in chosen]
    blocks += [_picture(run, "worst", f"{run.name}: {WORST}") for run in chosen if _has_worst(run)]
    samplers = [run for run in chosen if run.value("gfid_paper") is not None]
    return blocks + [_picture(run, "samples", f"{run.name}: samples from the prior") for run in samplers]


def _has_worst(run: RunSummary) -> bool:
    """Whether it was scored since this picture is drawn."""
    return figure_path(run.folder, "worst").is_file()


def intervals_picture(folder: Path, runs: Sequence[RunSummary]) -> list[Block]:
    """Scores and their intervals at a glance, drawn into `folder`; nothing where no run has any."""
    panels = [panel for spec in SPECS if (panel := _panel(spec, runs)).intervals]
    if not panels:
        return []
    path = figure_path(folder, "intervals")
    write_intervals(path, panels)
    return [Picture(path, INTERVALS_CAPTION)]


def _panel(spec: ScoreSpec, runs: Sequence[RunSummary]) -> Panel:
    """One score of all runs that have it with an interval, beside the range of real images."""
    intervals = []
    for run in runs if spec.section in IN_PICTURE else ():
        score = run.score(spec.key)
        if score and score.value is not None and score.low is not None and score.high is not None:
            intervals.append(Interval(run.name, score.value, score.low, score.high))
    floors = [score for run in runs if (score := run.score(spec.baseline))]
    ends = [(score.low, score.high) for score in floors if score.low is not None and score.high is not None]
    band = ends[0] if len({*ends}) == 1 else None
    return Panel(f"{spec.head}\n({BETTER[spec.better]} is better)", intervals, band)


def _picture(run: RunSummary, name: str, caption: str) -> Block:
    path = figure_path(run.folder, name)
    return Picture(path, caption) if path.is_file() else Text(f"{caption}: {path} is missing")
