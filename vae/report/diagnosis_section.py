"""Is the diagnosis kept: what classifiers say of reconstructions, of real images, and of cheap copies."""

from collections.abc import Sequence

from data_prep.errors import ToolkitError
from vae.report.page import MISSING, Block, Heading, Table, Text, number
from vae.report.run_summary import RunSummary
from vae.report.scores_section import section_table
from vae.scoring.classifier_record import ClassifierRecord, read_classifiers
from vae.scoring.judgement import Judgement
from vae.scoring.score_specs import Section

HOW_TO_READ = (
    "Classifiers that were trained on real images look at reconstructions. The loss of AUC against the real "
    "images is the score; both are means over the classifiers. Sensitivity and specificity are at the "
    "threshold that was best on real validation images, so a changed look of the images shows in them even "
    "where the AUC holds. The intervals are over test patients; how far the classifiers are apart stands in "
    "the notes of the cards, and a variant is called better only where all of them agree.",
    "The ruler are cheap copies of the same images. A model that keeps less than as many plain grey values "
    "is not worth training for this.",
    "The label may show in how a film was taken, not only in what it shows: in the paediatric set of the "
    "published study, the size of the original file alone tells the classes apart (AUC 0.998). So this is "
    "information on the label, not clinical value.",
)
NONE = "Not measured: there are no classifiers of these images. To make them: python jobs/classify.py DATA"
NOT_YET = "Not measured yet, though there are classifiers of these images: python jobs/evaluate.py STUDY"


def diagnosis_section(runs: Sequence[RunSummary]) -> list[Block]:
    """The table of runs and real images, the ruler, and how to read both; or how to come by them."""
    title = Heading("Is the diagnosis kept")
    records = {record.digest: record for run in runs if (record := _record_of(run))}
    if all(run.value("auc") is None for run in runs):
        return [title, Text(NOT_YET if records else NONE)]
    used = {score.card.extractor_sha256 for run in runs if (score := run.score("auc"))}
    records = {digest: record for digest, record in records.items() if digest in used}
    blocks: list[Block] = [title, section_table(runs, Section.DIAGNOSIS)]
    blocks += [ruler_table(record) for record in records.values()]
    blocks += [Text(_reached(record)) for record in records.values()]
    return blocks + [Text(paragraph) for paragraph in HOW_TO_READ]


def _record_of(run: RunSummary) -> ClassifierRecord | None:
    """The whole classifiers that there are for a run's images."""
    if run.scores is None:
        return None
    try:
        return read_classifiers(run.folder.parent.parent, run.scores.data_fingerprint)
    except ToolkitError:  # the scores stand without it
        return None


def _reached(record: ClassifierRecord) -> str:
    """How good the classifiers are."""
    on_val = ", ".join(number(value) for value in record.val_auc)
    on_test = ", ".join(number(value) for value in record.real.auc_of_each)
    classes = ", ".join(record.class_names)
    reached = f"AUC on validation images: {on_val}; on test images: {on_test}."
    return f"{len(record.seeds)} classifiers of {classes}. {reached}"


def ruler_table(record: ClassifierRecord) -> Table:
    """A row for each kind of copy, real images first."""
    head = [
        "ruler",
        "bytes an image",
        "PSNR (dB)",
        "AUC",
        "loss of AUC",
        "sensitivity",
        "specificity",
        "decisions changed",
    ]

    def row(name: str, size: float | None, psnr_db: float | None, judgement: Judgement) -> list[str]:
        numbers = [psnr_db, judgement.auc, record.real.auc - judgement.auc, judgement.sensitivity]
        numbers += [judgement.specificity, judgement.decisions_changed]
        return [name, MISSING if size is None else f"{size:,.0f}", *map(number, numbers)]

    rows = [row("real images", None, None, record.real)]
    rows += [row(entry.name, entry.bytes_per_image, entry.psnr_db, entry.judgement) for entry in record.ruler]
    return Table(head, rows, frozenset(range(1, len(head))))
