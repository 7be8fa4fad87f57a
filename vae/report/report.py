"""The report of a study: report.html (one file), report.md and scores.csv, from the files of its runs.

It always comes: a run that is not finished or not scored is in it, with the reason. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_prep.errors import ToolkitError
from data_prep.files import write_text
from data_prep.shards import read_manifest
from vae.config import RunConfig, to_dict
from vae.figures import write_loss_curves
from vae.goodput import Account, Attempt, Spent, account, duration, suggestions, total
from vae.metrics import read_metrics
from vae.report.page import Block, Details, Heading, Picture, Table, Text, to_html, to_markdown, to_text
from vae.study import DONE_FILE, PROVENANCE_FILE, SCORES_FILE, read_json, read_run, read_study

# FID and IS as the published study gives them, for its two iterations.
PUBLISHED = {
    "published, first iteration (linear)": {"rfid_paper": "0.447", "is_reconstructions": "2.479"},
    "published, second iteration (direct)": {"rfid_paper": "0.133", "is_reconstructions": "3.014"},
}

PAPER_COLUMNS = {
    "rfid_paper": "FID, reconstructions",
    "gfid_paper": "FID, samples",
    "is_reconstructions": "IS, reconstructions",
    "is_samples": "IS, samples",
}
OTHER_COLUMNS = {
    "rfid_2048": "FID-2048, reconstructions",
    "gfid_2048": "FID-2048, samples",
    "ssim": "SSIM",
    "psnr": "PSNR (dB)",
    "bce": "BCE (nats/image)",
    "kl": "KL (nats/image)",
}
# What a score is called in a sentence.
IN_WORDS = {
    "rfid_paper": "FID of reconstructions",
    "gfid_paper": "FID of samples",
    "floor_paper": "FID of real images",
    "rfid_2048": "FID-2048 of reconstructions",
    "gfid_2048": "FID-2048 of samples",
    "floor_2048": "FID-2048 of real images",
    "is_reconstructions": "Inception score of reconstructions",
    "is_samples": "Inception score of samples",
    "is_real": "Inception score of real images",
    "ssim": "SSIM",
    "psnr": "PSNR",
    "bce": "cross-entropy",
    "kl": "KL divergence",
}
# Where the scores of real images stand in these tables.
BASELINES = {
    "gfid_paper": "floor_paper",
    "gfid_2048": "floor_2048",
    "is_reconstructions": "is_real",
    "is_samples": "is_real",
}
CSV_CARD = (
    "n_real",
    "n_fake",
    "n",
    "split",
    "images",
    "layer",
    "computed_by",
    "extractor",
    "extractor_sha256",
    "label",
    "checkpoint_sha256",
    "data_fingerprint",
)
MISSING = "-"

NOT_CLINICAL = (
    "These numbers compare images with images. They are not a clinical quality measure, and nothing here "
    "is for use in patient care."
)
LOSS_CAPTION = (
    "Loss per image: cross-entropy summed over pixels + beta x KL. Its minimum is not 0 but the entropy of "
    "the grey values. The first steps may lie above the frame."
)
SETTINGS_TEXT = "Settings that some run has changed. The defaults are the published study's."
# Under the table of FID and IS, a paragraph each.
HOW_TO_READ = (
    "Lower FID is better; 0 is a perfect copy. For reconstructions it measures what is lost on the way "
    "through the latents, so more latents win, and direct has no bottleneck at all. For samples, the row of "
    "real images is what as many training images score: what a perfect sampler could reach.",
    "The Inception score counts ImageNet classes, which X-rays do not show. Only its distance to the score "
    "of the real images says anything.",
    "The rows of the published study can be compared with care. Its code was pytorch-ignite's FID and "
    "Inception score on 1000 class probabilities, and this table repeats that protocol; such a FID is at "
    "most about 2 and not on the scale of a FID on 2048 activations. But the published study does not say "
    "whether it scored reconstructions or samples, which images, or how many. Its second iteration cannot "
    "sample, so its figures stand under reconstructions. They come from one training of each model.",
)
HOW_TO_READ_SMOKE = (
    "These scores come from a tiny network with seeded random weights. They show that the scoring works, and "
    "nothing about the models: compare them with no other number.",
)
TIMES_TEXT = (
    "Useful is the share of the allocated time that went into training steps whose results survived (also "
    "called goodput or effective training time). The rest is start-up, steps that an interruption made the "
    "run do again, saving, and validation. Time in the queue is not allocated time. What an interrupted "
    "attempt did after its last line of metrics.jsonl is not counted, and neither is scoring."
)


@dataclass(frozen=True)
class Run:
    """What is known of one run."""

    name: str
    config: RunConfig | None
    state: str
    reason: str
    """Why it is not scored; empty if it is."""
    metrics: list[dict[str, Any]]
    provenance: dict[str, Any]
    scores: dict[str, Any]
    """scores.json if it belongs to the finished weights, else empty."""
    folder: Path

    @property
    def label(self) -> str:
        """What its scores must carry with them, as in `smoke, not comparable`."""
        return self.scores.get("label", "")

    @property
    def variant(self) -> str:
        return self.config.variant if self.config else MISSING

    def account(self) -> Account:
        """Where its time went."""
        known = self.provenance.get("attempts", [])
        is_done = self.state in ("not scored", "scored")
        return account(self.name, known, self.metrics, is_done, self.scores.get("host_gb"))

    def value(self, name: str) -> float | None:
        """A score, or None where there is none."""
        return self.scores.get("scores", {}).get(name, {}).get("value")


def read(folder: Path) -> Run:
    """Whatever can be read of the run in `folder`; never fails for what is missing or damaged."""
    config, metrics, problem = None, [], ""
    try:
        config = read_run(folder)
        metrics = read_metrics(folder)
    except (ToolkitError, ValueError) as error:
        problem = str(error)
    done, scores = read_json(folder / DONE_FILE), read_json(folder / SCORES_FILE)
    if not folder.exists():
        state, reason = "missing", "it was never started"
    elif config is None or (problem and done is None):
        state, reason = "damaged", problem
    elif done is None:
        state, reason = "not finished", _progress(metrics)
    elif scores is None:
        state, reason = "not scored", f"to score it: python jobs/evaluate.py {folder}"
    elif scores.get("checkpoint_sha256") != done.get("weights_sha256"):
        state, reason = "not scored", "its scores belong to other weights; score it again"
    else:
        state, reason = "scored", ""
    known = scores if scores and state == "scored" else {}
    provenance = read_json(folder / PROVENANCE_FILE) or {}
    return Run(folder.name, config, state, reason, metrics, provenance, known, folder)


def _progress(metrics: list[dict[str, Any]]) -> str:
    starts = [line for line in metrics if line["kind"] == "start"]
    if not starts:
        return "training has not begun"
    return f"training is at step {metrics[-1]['step']:,} of {starts[-1]['total_steps']:,}"


def write_report(study_dir: Path, run: str = "") -> Path:
    """Write report.md, scores.csv and report.html; returns the path of report.html.

    Args:
        study_dir: folder of the study; what is written goes there.
        run: only this run of it; what is written goes into the run's folder.

    Raises:
        SettingsError: `study_dir` is not a study.
    """
    study = read_study(study_dir)
    runs = [read(study_dir / name) for name in ([run] if run else study.runs)]
    folder, title = study_dir / run, f"Run {run}" if run else f"Study {study.name}"
    blocks = [
        *_opening(title, runs),
        *_score_blocks(runs, is_smoke=study.extractor == "smoke"),
        *_loss_blocks(folder, runs),
        *_image_blocks(runs),
        *_time_blocks(runs),
        *_settings_blocks(runs),
        *_provenance_blocks(runs),
        *_card_blocks(runs),
    ]
    write_text(folder / "scores.csv", scores_csv(study.name, runs))
    write_text(folder / "report.md", to_markdown(blocks, folder))
    path = folder / "report.html"
    write_text(path, to_html(title, blocks))
    return path


def score_table(study_dir: Path, names: Sequence[str] = ()) -> str:
    """The scores of a study's runs as text for a terminal; `names` picks runs, else all of study.yaml."""
    runs = [read(study_dir / name) for name in names or read_study(study_dir).runs]
    tables = [to_text(_score_table(runs, columns)) for columns in (PAPER_COLUMNS, OTHER_COLUMNS)]
    reasons = [f"{run.name}: {run.state}: {run.reason}" for run in runs if run.reason]
    return "\n\n".join([*tables, "\n".join(reasons)]).rstrip()


def _opening(title: str, runs: list[Run]) -> list[Block]:
    head = ["run", "variant", "state", "epochs", "steps", "restarts", "images/s", "val. loss (nats/image)"]
    return [
        Heading(title, 1),
        Text("Variational autoencoders for chest X-rays: training, scores and images of every run."),
        Text(NOT_CLINICAL),
        *_label_warnings(runs),
        Heading("Runs"),
        Table(head, [_run_row(run) for run in runs], frozenset(range(3, 8))),
        *_data_blocks(runs),
    ]


def _run_row(run: Run) -> list[str]:
    start = next((line for line in run.metrics if line["kind"] == "start"), None)
    step = run.metrics[-1]["step"] if start else None
    speeds = [line["images_per_s"] for line in run.metrics if line["kind"] == "step"]
    checks = [line["val_loss"] for line in run.metrics if "val_loss" in line]
    attempts = len(run.provenance.get("attempts", []))
    return [
        run.name,
        run.variant,
        f"{run.state}: {run.reason}" if run.reason else run.state,
        f"{step / start['steps_per_epoch']:.4g}" if start else MISSING,
        f"{step:,}" if start else MISSING,
        str(attempts - 1) if attempts else MISSING,
        number(statistics.median(speeds) if speeds else None),
        number(checks[-1] if checks else None),
    ]


def _label_warnings(runs: list[Run]) -> list[Block]:
    labels = dict.fromkeys(run.label for run in runs if run.label)
    return [Text(f"FID and IS here: {label}.", is_warning=True) for label in labels]


def _data_blocks(runs: list[Run]) -> list[Block]:
    """Number of images by split and class, once per data set."""
    blocks: list[Block] = []
    for data in dict.fromkeys(run.config.data for run in runs if run.config):
        try:
            manifest = read_manifest(Path(data))
        except ToolkitError as error:
            blocks.append(Text(f"The images are not at hand any more: {error}"))
            continue
        rows = []
        for split, shards in manifest.splits.items():
            counts = map(sum, zip(*(shard.class_counts for shard in shards), strict=True))
            rows.append([split, *(f"{count:,}" for count in counts), f"{manifest.num_images(split):,}"])
        size = manifest.image_size_px
        blocks += [
            Text(f"Images: {size} x {size} px, 8-bit grey. Fingerprint {manifest.fingerprint}"),
            Table(["split", *manifest.class_names, "all"], rows, frozenset(range(1, len(rows[0])))),
        ]
    return blocks


def _score_blocks(runs: list[Run], is_smoke: bool) -> list[Block]:
    beside = "" if is_smoke else " beside the published figures"
    blocks: list[Block] = [Heading(f"FID and Inception score{beside}")]
    counts = {run.scores["scores"]["rfid_paper"]["protocol"]["n_fake"] for run in runs if run.scores}
    blocks += [Text(f"Scores of {count:,} test images, or as many samples.") for count in sorted(counts)]
    blocks += [_score_table(runs, PAPER_COLUMNS, with_published=not is_smoke)]
    blocks += [Text(paragraph) for paragraph in (HOW_TO_READ_SMOKE if is_smoke else HOW_TO_READ)]
    blocks += [Heading("Other scores"), _score_table(runs, OTHER_COLUMNS)]
    reasons: dict[str, list[str]] = {}
    for run in runs:
        for name, entry in run.scores.get("scores", {}).items():
            if entry["value"] is None:
                reasons.setdefault(f"{run.name}: {entry['reason']}", []).append(name)
    blocks += [Text(f"No {in_words(names)} for {reason}.") for reason, names in reasons.items()]
    return blocks


def in_words(names: Sequence[str]) -> str:
    """Names of scores as a sentence has them: `FID of samples and Inception score of samples`."""
    words = [IN_WORDS.get(name, name) for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _score_table(runs: list[Run], columns: dict[str, str], with_published: bool = False) -> Table:
    """One row per run, then means over seeds, real images and, if asked for, the published figures."""
    rows = [[run.name, *(number(run.value(name)) for name in columns), run.label] for run in runs]
    for variant in dict.fromkeys(run.variant for run in runs):
        peers = [run for run in runs if run.variant == variant and run.scores]
        if len(peers) > 1:
            cells = [spread([run.value(name) for run in peers]) for name in columns]
            labels = ", ".join(dict.fromkeys(run.label for run in peers if run.label))
            name = f"{variant}, mean ± standard deviation of {len(peers)} seeds"
            rows.append([name, *cells, labels])
    # the same for all runs of a study, unless they were scored by different extractors
    judged = {run.scores.get("extractor_sha256"): run for run in reversed(runs) if run.scores}
    for run in judged.values():
        cells = [number(run.value(BASELINES.get(name, ""))) for name in columns]
        rows.append(["real images", *cells, run.label])
    if with_published:
        rows += [
            [name, *(known.get(column, MISSING) for column in columns), ""]
            for name, known in PUBLISHED.items()
        ]
    head, numbers = ["", *columns.values(), "label"], frozenset(range(1, len(columns) + 1))
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table(head, rows, numbers)


def number(value: float | None) -> str:
    """Four digits, or whole thousands; a dash where there is no number."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash where there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation over seeds."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return number(known[0]) if known else MISSING
    return f"{number(statistics.mean(known))} ± {statistics.stdev(known):.2g}"


def _loss_blocks(folder: Path, runs: list[Run]) -> list[Block]:
    path = folder / "figures" / "loss.png"
    heading = Heading("Loss curves")
    if not write_loss_curves(path, {run.name: run.metrics for run in runs}):
        return [heading, Text("No run has logged a loss yet.")]
    return [heading, Picture(path, LOSS_CAPTION)]


def _image_blocks(runs: list[Run]) -> list[Block]:
    """The same 32 test images as they are and as each variant's first scored run gives them back; samples."""
    shown = {run.variant: run for run in reversed(runs) if run.scores}
    firsts = [run for run in runs if shown.get(run.variant) is run]
    blocks: list[Block] = [Heading("Images")]
    if not firsts:
        return [*blocks, Text("There are no images before a run is scored.")]
    blocks.append(_picture(firsts[0], "originals", "The first test images, up to 32"))
    for run in firsts:
        caption = f"{run.name}: reconstructions of the images above, in the same order"
        blocks.append(_picture(run, "reconstructions", caption))
    for run in firsts:
        if run.scores["scores"]["gfid_paper"]["value"] is not None:
            blocks.append(_picture(run, "samples", f"{run.name}: samples from the prior"))
    return blocks


def _picture(run: Run, name: str, caption: str) -> Block:
    path = run.folder / "figures" / f"{name}.png"
    return Picture(path, caption) if path.is_file() else Text(f"{caption}: {path} is missing")


def _time_blocks(runs: list[Run]) -> list[Block]:
    """What became of the allocated time, by run and by attempt, and what to ask for next time."""
    accounts = [run.account() for run in runs]
    told = [one for one in accounts if one.attempts]
    if not told:
        return [Heading("Where the time went"), Text("No attempt has left times yet.")]
    rows = [(one.run, one.spent) for one in told]
    if len(told) > 1:
        rows.append(("all runs", total(spent for _, spent in rows)))
    blocks: list[Block] = [Heading("Where the time went"), Text(TIMES_TEXT), _time_table("run", rows)]
    for one in told:
        if len(one.attempts) > 1:
            tries = [(_attempt_name(attempt), attempt.spent) for attempt in one.attempts]
            title = f"{one.run}: {len(tries)} attempts"
            blocks.append(Details(title, [_time_table("attempt", tries), _peak_table(one.attempts)]))
    if sentences := suggestions(accounts):
        blocks += [Heading("For the next launch", 3), *(Text(sentence) for sentence in sentences)]
    return blocks


def _attempt_name(attempt: Attempt) -> str:
    lost = f", {attempt.steps_lost:,} of them again later" if attempt.steps_lost else ""
    return f"from step {attempt.first_step:,}, {attempt.steps:,} steps{lost}"


# Columns of time, in seconds, and of hours; those that no row knows anything of are left out.
TIMES = {
    "in the queue": "wait_s",
    "start-up": "startup_s",
    "useful steps": "useful_s",
    "steps done again": "lost_s",
    "saving": "save_s",
    "validation": "val_s",
}
HOURS = {"GPU-hours": "gpu_hours", "CPU-hours": "cpu_hours"}


def _time_table(what: str, rows: Sequence[tuple[str, Spent]]) -> Table:
    """A row of times for each name."""
    times = {
        head: name
        for head, name in TIMES.items()
        if any(getattr(spent, name) is not None for _, spent in rows)
    }
    hours = {head: name for head, name in HOURS.items() if any(getattr(spent, name) for _, spent in rows)}

    def cells(spent: Spent) -> list[str]:
        return [
            *(duration(getattr(spent, name)) or MISSING for name in times.values()),
            MISSING if spent.goodput is None else f"{spent.goodput:.0%}",
            *(fixed(getattr(spent, name), 2) for name in hours.values()),
        ]

    head = [what, *times, "useful", *hours]
    return Table(head, [[name, *cells(spent)] for name, spent in rows], frozenset(range(1, len(head))))


def _peak_table(attempts: Sequence[Attempt]) -> Table:
    """What the first process of each attempt used."""
    heads = {"cores": "CPU cores busy", "host_gb": "memory (GiB)", "gpu_gb": "GPU memory (GiB)"}
    names = [name for name in heads if any(name in attempt.peaks for attempt in attempts)]
    rows = [
        [
            _attempt_name(attempt),
            f"{attempt.place[1]} x {attempt.place[0]}",
            *(fixed(attempt.peaks.get(name), 1) for name in names),
        ]
        for attempt in attempts
    ]
    head = ["attempt", "processes", *(heads[name] for name in names)]
    return Table(head, rows, frozenset(range(2, len(head))))


def _settings_blocks(runs: list[Run]) -> list[Block]:
    configs = {run.name: to_dict(run.config) for run in runs if run.config}
    if not configs:
        return []
    standard = to_dict(RunConfig())
    differs = [
        field.name
        for field in fields(RunConfig)
        if any(config[field.name] != standard[field.name] for config in configs.values())
    ]
    rows = [
        [name, str(standard[name]), *(str(config[name]) for config in configs.values())] for name in differs
    ]
    same = ", ".join(f"{name} {value}" for name, value in standard.items() if name not in differs)
    return [
        Heading("Settings"),
        Text(SETTINGS_TEXT),
        Table(["setting", "default", *configs], rows),
        Text(f"As by default: {same}."),
    ]


def _provenance_blocks(runs: list[Run]) -> list[Block]:
    blocks: list[Block] = [Heading("Provenance")]
    for run in runs:
        known = run.provenance
        if not known:
            blocks.append(Text(f"{run.name}: nothing is recorded before training begins."))
            continue
        facts = {
            "command": shlex.join(known.get("command", [])) or MISSING,
            "commit": known.get("commit", MISSING),
            "SHA-256 of uncommitted changes": known.get("diff_sha256", "no such changes"),
            "data fingerprint": known.get("data_fingerprint", MISSING),
            "SHA-256 of the run's weights": run.scores.get("checkpoint_sha256", MISSING),
            "versions": ", ".join(f"{name} {text}" for name, text in known.get("versions", {}).items()),
        }
        blocks += [
            Heading(run.name, 3),
            Table(["fact", "value"], [[name, str(text)] for name, text in facts.items()]),
        ]
        attempts = known.get("attempts", [])
        # times are told in a section of their own
        head = list(
            dict.fromkeys(k for attempt in attempts for k in attempt if k != "work" and k[-2:] != "_s")
        )
        rows = [[str(attempt.get(key, "")) for key in head] for attempt in attempts]
        blocks.append(
            Details(f"Attempts: {len(attempts)}", [Table([key.replace("_", " ") for key in head], rows)])
        )
    return blocks


def _card_blocks(runs: list[Run]) -> list[Block]:
    """How each number was made, by run."""
    blocks: list[Block] = [
        Details(f"{run.name}: how each number was made", _cards(run)) for run in runs if run.scores
    ]
    return [Heading("Protocol cards"), *(blocks or [Text("No run is scored yet.")])]


def _cards(run: Run) -> list[Block]:
    """What the cards of a run's scores have in common, a row for each score, and their notes."""
    columns = ("images", "n_real", "n_fake", "n", "layer", "computed_by")
    scores = run.scores["scores"].items()
    cards = {name: entry["protocol"] for name, entry in scores if entry["value"] is not None}
    facts = {"scored on": f"{run.scores['world_size']} x {run.scores['device']}"}
    notes: dict[str, list[str]] = {}
    for name, card in cards.items():
        facts |= {key: text for key, text in card.items() if key not in (*columns, "note", "exact_value")}
        notes.setdefault(card.get("note", ""), []).append(name)
    rows = [[name, *(str(card.get(key, "")) for key in columns)] for name, card in cards.items()]
    return [
        Table(["fact", "value"], [[key.replace("_", " "), str(text)] for key, text in facts.items()]),
        Table(["score", *(key.replace("_", " ") for key in columns)], rows, frozenset((2, 3, 4))),
        *(Text(f"{in_words(names)}: {note}.") for note, names in notes.items() if note),
    ]


def scores_csv(study: str, runs: list[Run]) -> str:
    """Every score of every run as CSV, one a line, with what its card says."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["study", "run", "variant", "seed", "score", "value", "unit", "reason", *CSV_CARD])
    for run in runs:
        start = [study, run.name, run.variant, run.config.seed if run.config else ""]
        if not run.scores:
            writer.writerow([*start, "", "", "", f"{run.state}: {run.reason}", *("" for _ in CSV_CARD)])
        for name, entry in run.scores.get("scores", {}).items():
            values = [entry["value"], entry["unit"], entry.get("reason", "")]
            writer.writerow([*start, name, *values, *(entry["protocol"].get(key, "") for key in CSV_CARD)])
    return out.getvalue()
