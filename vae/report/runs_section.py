"""The first section of the report: the state of every run, and the images they were trained on."""

import statistics
from itertools import chain
from pathlib import Path

from data_prep.errors import ToolkitError
from data_prep.manifest import read_manifest
from vae.metrics import EpochLine, StepLine
from vae.report.page import MISSING, Block, Heading, Table, Text, number
from vae.report.run_summary import RunSummary

NOT_CLINICAL = (
    "These numbers compare images with images. They are not a clinical quality measure, and nothing here "
    "is for use in patient care."
)
HEAD = (
    "run",
    "variant",
    "state",
    "epochs",
    "steps",
    "restarts",
    "images/s",
    "val. loss, mean latents (nats/image)",
)


def title_section(title: str, runs: list[RunSummary]) -> list[Block]:
    """The page's title and what to know before any number."""
    labels = dict.fromkeys(run.label for run in runs if run.label)
    return [
        Heading(title, 1),
        Text("Variational autoencoders for chest X-rays: training, scores and images of every run."),
        Text(NOT_CLINICAL),
        *(Text(f"FID and IS here: {label}.", is_warning=True) for label in labels),
    ]


def runs_section(runs: list[RunSummary]) -> list[Block]:
    """A row per run and a table per data set."""
    data_dirs = dict.fromkeys(run.config.data for run in runs if run.config)
    return [
        Heading("Runs"),
        Table(HEAD, [_run_row(run) for run in runs], frozenset(range(3, 8))),
        *chain.from_iterable(_data_blocks(Path(data_dir)) for data_dir in data_dirs),
    ]


def _run_row(run: RunSummary) -> list[str]:
    progress, has_begun = run.progress, bool(run.progress.total_steps)
    num_attempts = len(run.provenance.attempts)
    speeds = [line.images_per_s for line in run.metrics if isinstance(line, StepLine)]
    losses = [line.val_loss for line in run.metrics if isinstance(line, EpochLine)]
    val_losses = [loss for loss in losses if loss is not None]
    return [
        run.name,
        run.variant,
        f"{run.state}: {run.reason}" if run.reason else run.state,
        f"{progress.epoch:.4g}" if has_begun else MISSING,
        f"{progress.step:,}" if has_begun else MISSING,
        str(num_attempts - 1) if num_attempts else MISSING,
        number(statistics.median(speeds) if speeds else None),
        number(val_losses[-1] if val_losses else None),
    ]


def _data_blocks(data_dir: Path) -> list[Block]:
    """Number of images of one data set by split and class."""
    try:
        manifest = read_manifest(data_dir)
    except ToolkitError as error:
        return [Text(f"The images are not at hand any more: {error}")]
    rows = []
    for split, shards in manifest.splits.items():
        counts = map(sum, zip(*(shard.class_counts for shard in shards), strict=True))
        rows.append([split, *(f"{count:,}" for count in counts), f"{manifest.num_images(split):,}"])
    size = manifest.image_size_px
    return [
        Text(f"Images: {size} x {size} px, 8-bit grey. Fingerprint {manifest.fingerprint}"),
        Table(["split", *manifest.class_names, "all"], rows, frozenset(range(1, len(rows[0])))),
    ]
