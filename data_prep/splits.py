"""Splits: every patient in train, val or test; as the source says, or cut with a seed."""

import random
from collections import defaultdict
from collections.abc import Iterable

from data_prep.errors import DataError
from data_prep.items import Item
from data_prep.shards import SPLITS

# Below this share of the wanted size a given validation split is too small to choose by (Kaggle's: 16).
TINY_VAL_SHARE = 0.5


def cut_splits(items: Iterable[Item], fraction: float, seed: int) -> dict[str, list[Item]]:
    """Images by split; DataError if the source has a patient on two sides, or nothing is left to train on.

    Test stays as given. Validation is cut from train, about `fraction` of each class, if it is missing or
    tiny; so is test if the source gives none.
    """
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        splits[item.split or "train"].append(item)
    train_and_val = splits["train"] + splits["val"]
    if len(splits["val"]) < TINY_VAL_SHARE * fraction * len(train_and_val):
        splits |= {"train": train_and_val, "val": []}
    refuse_shared_patients(splits)
    for split in ("test", "val"):
        if not splits[split]:
            splits[split], splits["train"] = cut_patients(splits["train"], split, fraction, seed)
    if not splits["train"]:
        counts = ", ".join(f"{len(members)} for {split}" for split, members in splits.items())
        few = "the source needs more patients, or rows of its own for train, val and test"
        raise DataError(f"no image is left to train on: {counts}, as patients stay whole", few)
    return splits


def cut_patients(items: list[Item], split: str, fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """About `fraction` of each class for `split`, in whole patients; and the rest."""
    by_class: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    owner: dict[str, str] = {}  # a patient with images of two classes counts for the first
    for item in sorted(items, key=lambda item: item.key):
        patient = item.group or item.key
        by_class[owner.setdefault(patient, item.label)][patient].append(item)
    cut: list[Item] = []
    for label, patients in sorted(by_class.items()):
        enough = len(cut) + max(1, round(fraction * sum(map(len, patients.values()))))
        order = sorted(patients)
        random.Random(f"{split}-{label}-{seed}").shuffle(order)
        while len(cut) < enough and order:
            cut += patients[order.pop()]
    chosen = {item.key for item in cut}
    return cut, [item for item in items if item.key not in chosen]


def refuse_shared_patients(splits: dict[str, list[Item]]) -> None:
    """Raise DataError if a patient has images in two splits."""
    first: dict[str, tuple[str, Item]] = {}
    shared: dict[str, str] = {}  # by patient, where two of the images lie
    for split in SPLITS:
        for item in splits[split]:
            other_split, other = first.setdefault(item.group, (split, item))
            if item.group and other_split != split:
                files = f"{other.path or other.key} in {other_split}, {item.path or item.key} in {split}"
                shared.setdefault(item.group, files)
    if shared:
        some = "; ".join(f"{patient}: {files}" for patient, files in sorted(shared.items())[:3])
        count = "1 patient has" if len(shared) == 1 else f"{len(shared)} patients have"
        raise DataError(
            f"{count} images in two splits, such as {some}",
            "correct the splits of the source, or leave them out to have them cut by patient",
        )
