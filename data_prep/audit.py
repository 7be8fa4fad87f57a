"""What is in a packed data set, and what would spoil a study: leaks, duplicates, tell-tale file sizes."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import ClassVar

import msgspec
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from data_prep.errors import DamagedFile, DataError
from data_prep.json_records import Record, decode, read_bytes, write_record
from data_prep.manifest import MANIFEST_FILE, read_manifest
from data_prep.plain_text import one_line
from data_prep.shard_reader import read_records, read_rejects
from data_prep.shards import ImageRecord

AUDIT_FILE = "audit.json"

Rows = list[tuple[str, ImageRecord]]  # split and record of each image


class Duplicates(Record, frozen=True):
    """Files that are the same byte for byte: groups, files in them, groups over several splits or classes."""

    groups: int
    files: int
    across_splits: int
    across_classes: int


class SourceFiles(Record, frozen=True, omit_defaults=True):
    """The source files of one class, nothing if it has none: what else could tell it apart."""

    median_width_px: float = 0.0
    median_height_px: float = 0.0
    median_kb: float = 0.0
    median_bits_per_px: float = 0.0
    """Of the file; differs between classes where they were compressed differently."""
    modes: dict[str, int] = msgspec.field(default_factory=dict)


class Audit(Record, frozen=True):
    """What audit.json holds."""

    IF_DAMAGED: ClassVar[str] = "pack again: it writes the audit anew"

    num_images: int
    splits: dict[str, dict[str, int]]
    patients: dict[str, int]
    patient_leaks: list[str]
    duplicates: Duplicates
    classes: dict[str, SourceFiles]
    quarantined: dict[str, int]
    """Files by reason."""


def write(out: Path, names: Iterable[str], class_names: tuple[str, ...]) -> Audit:
    """Look through the shards `names`, write audit.json, and return it."""
    rows: Rows = []
    reasons: Counter[str] = Counter()
    for name in names:
        split = name.split("-")[0]
        rows += [(split, record) for record in read_records(out / name)]
        reasons.update(reject.reason.split(":")[0] for reject in read_rejects(out / name))
    images = Counter((split, record.label) for split, record in rows)
    splits = list(dict.fromkeys(split for split, _ in rows))
    patients = Counter(split for split, _ in patients_by_split(rows))
    audit = Audit(
        num_images=len(rows),
        splits={split: {name: images[split, i] for i, name in enumerate(class_names)} for split in splits},
        patients={split: patients[split] for split in splits},
        patient_leaks=leaks(rows),
        duplicates=duplicates(rows),
        classes={name: describe(rows, label) for label, name in enumerate(class_names)},
        quarantined=dict(reasons.most_common()),
    )
    write_record(out / AUDIT_FILE, audit)
    return audit


def read(out: Path) -> Audit:
    """The audit of a packed data set; DataError if it is not whole, DamagedFile if its audit was changed."""
    path, known = out / AUDIT_FILE, read_manifest(out).files
    content = read_bytes(path)
    if content is None:
        raise DataError(f"{path} is missing", Audit.IF_DAMAGED)
    if AUDIT_FILE in known and hashlib.sha256(content).hexdigest() != known[AUDIT_FILE]:
        raise DamagedFile(f"{path} is damaged: {MANIFEST_FILE} has another digest", Audit.IF_DAMAGED)
    return decode(content, msgspec.json.Decoder(Audit), str(path), Audit.IF_DAMAGED)


def patients_by_split(rows: Rows) -> set[tuple[str, str]]:
    """Every split with each known patient in it."""
    return {(split, record.group) for split, record in rows if record.group}


def leaks(rows: Rows) -> list[str]:
    """Patients with images in more than one split."""
    splits = Counter(patient for _, patient in patients_by_split(rows))
    return sorted(patient for patient, count in splits.items() if count > 1)


def duplicates(rows: Rows) -> Duplicates:
    """Count the files that are the same byte for byte."""
    by_digest: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_digest[row[1].source_sha256].append(row)
    groups = [group for group in by_digest.values() if len(group) > 1]
    return Duplicates(
        groups=len(groups),
        files=sum(map(len, groups)),
        across_splits=sum(len({split for split, _ in group}) > 1 for group in groups),
        across_classes=sum(len({record.label for _, record in group}) > 1 for group in groups),
    )


def describe(rows: Rows, label: int) -> SourceFiles:
    """Size, compression and colour mode of one class's source files."""
    records = [record for _, record in rows if record.label == label]
    if not records:
        return SourceFiles()
    bits_per_px = [8 * r.source_bytes / (r.source_width_px * r.source_height_px) for r in records]
    return SourceFiles(
        median_width_px=median(record.source_width_px for record in records),
        median_height_px=median(record.source_height_px for record in records),
        median_kb=round(median(record.source_bytes for record in records) / 1000, 1),
        median_bits_per_px=round(median(bits_per_px), 2),
        modes=dict(Counter(record.source_mode for record in records).most_common()),
    )


def tables(audit: Audit) -> RenderableType:
    """The audit as tables and lines for a terminal; class names as they are, even if like markup."""
    columns = [Column(_cell(name)) for name in audit.classes]
    images = Table("split", *columns, "images", "patients", title="Images")
    for split, counts in audit.splits.items():
        numbers = [*(counts.get(name, 0) for name in audit.classes), sum(counts.values())]
        images.add_row(
            _cell(split), *(f"{number:,}" for number in numbers), f"{audit.patients.get(split, 0):,}"
        )
    sources = Table("class", "median size, px", "median file, kB", "bits/px", "modes", title="Source files")
    for name, files in audit.classes.items():
        if files.modes:
            size = f"{files.median_width_px:.0f} x {files.median_height_px:.0f}"
            modes = ", ".join(f"{mode} {count:,}" for mode, count in files.modes.items())
            bits_per_px = str(files.median_bits_per_px)
            sources.add_row(_cell(name), size, str(files.median_kb), bits_per_px, _cell(modes))
    return Group(images, sources, *map(_cell, findings(audit)))


def _cell(text: str) -> Text:
    return Text(one_line(text))


def findings(audit: Audit) -> list[str]:
    """What to know before training, one line each."""
    same = audit.duplicates
    counts = Counter({split: sum(classes.values()) for split, classes in audit.splits.items()})
    train_and_val = counts["train"] + counts["val"]
    unknown = "the source names no patients: nobody can tell whether one is in two splits"
    leaks = f"patients in more than one split: {len(audit.patient_leaks)}"
    return [
        f"train and val together: {train_and_val:,} images; test: {counts['test']:,} images",
        leaks if any(audit.patients.values()) else unknown,
        f"duplicates: {same.groups} groups of byte-identical files ({same.files} files), "
        f"{same.across_splits} across splits, {same.across_classes} across classes",
        *(f"quarantined: {count} x {reason}" for reason, count in audit.quarantined.items()),
    ]
