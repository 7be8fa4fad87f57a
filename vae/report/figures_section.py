"""The report's pictures: loss curves of all runs, and test images beside what the runs make of them."""

from pathlib import Path

from vae.figures import write_loss_curves
from vae.report.page import Block, Heading, Picture, Text
from vae.report.run_summary import RunSummary
from vae.run_dir import figure_path

LOSS_CAPTION = (
    "Loss per image: cross-entropy summed over pixels + beta x KL. Its minimum is not 0 but the entropy of "
    "the grey values. The first steps may lie above the frame."
)


def figures_section(folder: Path, runs: list[RunSummary]) -> list[Block]:
    """The loss curves, drawn into `folder`, and the images of each variant's first scored run."""
    path = figure_path(folder, "loss")
    is_there = [run.folder for run in runs if run.scores] == [folder] and path.is_file()  # drawn when scored
    has_losses = is_there or write_loss_curves(path, {run.name: run.metrics for run in runs})
    curves = Picture(path, LOSS_CAPTION) if has_losses else Text("No run has logged a loss yet.")
    blocks: list[Block] = [Heading("Loss curves"), curves, Heading("Images")]
    scored = [run for run in runs if run.scores]
    variants = [run.variant for run in scored]
    chosen = [run for number, run in enumerate(scored) if run.variant not in variants[:number]]
    if not chosen:
        return [*blocks, Text("There are no images before a run is scored.")]
    blocks.append(_picture(chosen[0], "originals", "The first test images, up to 32"))
    caption = "reconstructions of the images above, in the same order"
    blocks += [_picture(run, "reconstructions", f"{run.name}: {caption}") for run in chosen]
    samplers = [run for run in chosen if run.value("gfid_paper") is not None]
    return blocks + [_picture(run, "samples", f"{run.name}: samples from the prior") for run in samplers]


def _picture(run: RunSummary, name: str, caption: str) -> Block:
    path = figure_path(run.folder, name)
    return Picture(path, caption) if path.is_file() else Text(f"{caption}: {path} is missing")
