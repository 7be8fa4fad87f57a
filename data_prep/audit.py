"""What is in a packed data set, and what would spoil a study: leaks, duplicates, tell-tale file sizes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from data_prep.errors import DataError
from data_prep.files import write_json
from data_prep.shards import ImageRecord, read_manifest, read_records, read_rejects

AUDIT_FILE = "audit.json"

Rows = list[tuple[str, ImageRecord]]


def write(out: Path, shards: Iterable[Path], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Look through the shards and write audit.json; returns its content."""
    rows: Rows = []
    reasons: Counter[str] = Counter()
    for path in shards:
        split = path.name.split("-")[0]
        rows += [(split, record) for record in read_records(path)]
        reasons.update(reject.reason.split(":")[0] for reject in read_rejects(path))
    found = {
        "num_images": len(rows),
        "splits": count_splits(rows, class_names),
        "patients": count_patients(rows),
        "patient_leaks": leaks(rows),
        "duplicates": duplicates(rows),
        "classes": {name: describe(rows, label) for label, name in enumerate(class_names)},
        "quarantined": dict(reasons.most_common()),
    }
    write_json(out / AUDIT_FILE, found)
    return found


def read(out: Path) -> dict[str, Any]:
    """The audit of a packed data set.

    Raises:
        DataError: there is no whole data set.
    """
    read_manifest(out)
    try:
        found: dict[str, Any] = json.loads((out / AUDIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{out / AUDIT_FILE} cannot be read", "pack again: it writes the audit anew"
        ) from error
    return found


def count_splits(rows: Rows, class_names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    counts = Counter((split, record.label) for split, record in rows)
    splits = list(dict.fromkeys(split for split, _ in rows))
    return {split: {name: counts[split, label] for label, name in enumerate(class_names)} for split in splits}


def count_patients(rows: Rows) -> dict[str, int]:
    """Known patients in each split."""
    groups: dict[str, set[str]] = defaultdict(set)
    for split, record in rows:
        groups[split] |= {record.group} - {""}
    return {split: len(found) for split, found in groups.items()}


def leaks(rows: Rows) -> list[str]:
    """Patients with images in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for split, record in rows:
        splits[record.group].add(split)
    return sorted(group for group, found in splits.items() if group and len(found) > 1)


def duplicates(rows: Rows) -> dict[str, int]:
    """Files that are the same byte for byte: groups, files in them, groups over several splits or classes."""
    same: dict[str, Rows] = defaultdict(list)
    for row in rows:
        same[row[1].source_sha256].append(row)
    groups = [found for found in same.values() if len(found) > 1]
    return {
        "groups": len(groups),
        "files": sum(map(len, groups)),
        "across_splits": sum(len({split for split, _ in found}) > 1 for found in groups),
        "across_classes": sum(len({record.label for _, record in found}) > 1 for found in groups),
    }


def describe(rows: Rows, label: int) -> dict[str, Any]:
    """Size, compression and colour mode of one class's source files: what else could tell it apart."""
    records = [record for _, record in rows if record.label == label]
    if not records:
        return {}
    return {
        "median_width_px": median(record.source_width_px for record in records),
        "median_height_px": median(record.source_height_px for record in records),
        "median_kb": round(median(record.source_bytes for record in records) / 1000, 1),
        "median_bits_per_px": round(median(bits_per_px(record) for record in records), 2),
        "modes": dict(Counter(record.source_mode for record in records).most_common()),
    }


def bits_per_px(record: ImageRecord) -> float:
    """Bits of the source file per pixel; differs between classes where they were compressed differently."""
    return 8 * record.source_bytes / (record.source_width_px * record.source_height_px)


def tables(found: dict[str, Any]) -> RenderableType:
    """The audit as tables and lines for a terminal."""
    class_names = list(found["classes"])
    images = Table("split", *class_names, "images", "patients", title="Images")
    for split, counts in found["splits"].items():
        total = f"{sum(counts.values()):,}"
        images.add_row(
            split, *(f"{counts[n]:,}" for n in class_names), total, f"{found['patients'][split]:,}"
        )
    sources = Table("class", "median size, px", "median file, kB", "bits/px", "modes", title="Source files")
    for name, facts in found["classes"].items():
        if facts:
            size = f"{facts['median_width_px']:.0f} x {facts['median_height_px']:.0f}"
            modes = ", ".join(f"{mode} {count:,}" for mode, count in facts["modes"].items())
            sources.add_row(name, size, str(facts["median_kb"]), str(facts["median_bits_per_px"]), modes)
    return Group(images, sources, *findings(found))


def findings(found: dict[str, Any]) -> list[str]:
    """What to know before training, one line each."""
    same = found["duplicates"]
    counts = {split: sum(classes.values()) for split, classes in found["splits"].items()}
    lines = [
        f"train and val together: {counts.get('train', 0) + counts.get('val', 0):,} images; "
        f"test: {counts.get('test', 0):,} images",
        f"patients in more than one split: {len(found['patient_leaks'])}",
        f"duplicates: {same['groups']} groups of byte-identical files ({same['files']} files), "
        f"{same['across_splits']} across splits, {same['across_classes']} across classes",
    ]
    lines += [f"quarantined: {count} x {reason}" for reason, count in found["quarantined"].items()]
    return lines
