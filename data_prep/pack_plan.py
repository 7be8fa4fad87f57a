"""The plan of a pack, kept as plan.json: every image in one split and shard, and how its pixels are made.

It is fixed before the first pixel is read, so a pack that was killed ends with the same bytes as one that was
not, and many parts write the same files as one process.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import ClassVar

import msgspec
from msgspec.structs import asdict, replace

from data_prep.errors import DamagedFile, DataError
from data_prep.files import writing
from data_prep.image import REDUCING_GAP, Aspect
from data_prep.json_records import Record, read_record, write_record
from data_prep.shards import SHARD_NAME, SPLITS, Recipe
from data_prep.sources import Item, Kind, find_items, keep_salt
from data_prep.splits import cut_splits

PLAN_FILE = "plan.json"


class PackOptions(Record, frozen=True):
    """What decides the content of the shards."""

    size_px: int = 256
    """Side of the square images; as published."""
    aspect: Aspect = "stretch"
    val_fraction: float = 0.1
    """Share of the training patients' images for validation, where the source gives too few."""
    shard_images: int = 4096
    """Images per shard: 256 MiB at 256 px."""
    seed: int = 0
    """Seeds the split and the order."""
    max_bad: float = 0.01
    """Largest share of unusable files; above it nothing is packed."""

    def __post_init__(self) -> None:
        """Raise DataError for values that make no data set."""
        if not 16 <= self.size_px <= 4096:
            raise DataError(f"--size {self.size_px} is not allowed", "16 to 4096 px")
        if not 0 < self.val_fraction < 0.5:
            raise DataError(f"--val-fraction {self.val_fraction} is not allowed", "above 0 and below 0.5")
        if self.shard_images < 1 or self.seed < 0:
            raise DataError("--shard-images must be at least 1 and --seed at least 0")
        if not 0 <= self.max_bad <= 1:
            raise DataError(f"--max-bad {self.max_bad} is not allowed", "0 to 1, as 0.01 for 1 %")


class ShardPlan(Record, frozen=True):
    """One shard to write: its name and its images in order."""

    name: str
    split: str
    items: tuple[Item, ...]


class Plan(Record, frozen=True):
    """Everything that decides the bytes of every shard."""

    IF_DAMAGED: ClassVar[str] = "delete it and pack again"

    source: str
    kind: Kind
    root: str
    options: PackOptions
    class_names: tuple[str, ...]
    shards: tuple[ShardPlan, ...]

    def items(self) -> Iterator[Item]:
        """All images, shard by shard."""
        return chain.from_iterable(shard.items for shard in self.shards)

    @property
    def recipe(self) -> Recipe:
        """How pixels are made, stored in every shard."""
        recipe: Recipe = {"size_px": self.options.size_px, "aspect": self.options.aspect}
        if self.kind == "phantom":
            return {**recipe, "filter": "none: drawn at this size", "seed": self.options.seed}
        return {**recipe, "filter": "bicubic", "reducing_gap": REDUCING_GAP, "grey": "luma (ITU-R 601)"}

    def digest(self) -> str:
        """SHA-256 of the plan without source path and max_bad; takes seconds where the images are many."""
        options = replace(self.options, max_bad=0.0)  # neither changes the output
        values = msgspec.to_builtins(replace(self, source="", root="", options=options))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def count_images(shards: Iterable[ShardPlan]) -> int:
    """Files that the plan assigns to `shards`."""
    return sum(len(shard.items) for shard in shards)


def plan(source: str, out: Path, options: PackOptions, write: bool = True) -> Plan:
    """Decide which image of `source` goes into which shard, and `write` that down as OUT/plan.json.

    `source` is a folder, CSV file, DICOM folder or `phantom:N`. Raises DataError if it cannot be used, one
    patient is on two sides, or OUT holds another plan; DamagedFile if that is damaged.
    """
    # Splits by patient, then one seeded shuffle, then shards.
    listing = find_items(source, out, may_write=write)
    splits = cut_splits(listing.items, options.val_fraction, options.seed)
    shards = chain.from_iterable(plan_shards(split, splits[split], options) for split in SPLITS)
    class_names = tuple(sorted({item.label for item in listing.items}))
    if len(class_names) > 256:
        raise DataError(f"{source} has {len(class_names)} classes", "at most 256; are these class folders?")
    new = Plan(source, listing.kind, str(listing.root), options, class_names, tuple(shards))
    # Keep it, or see that it fits.
    if write:
        write_plan(out, new)
    else:
        existing_plan(out, new)
    return new


def write_plan(out: Path, new: Plan) -> None:
    """Keep `new`, which may have been made without writing, as OUT/plan.json. Raises as `plan`."""
    if new.kind == "dicom" and not keep_salt(out):
        raise DataError(f"somebody else has just begun to pack into {out}", "run the same command again")
    if existing_plan(out, new) != new:
        with writing(out / PLAN_FILE):
            write_record(out / PLAN_FILE, new)


def existing_plan(out: Path, new: Plan) -> Plan | None:
    """The plan that OUT holds, if any; DataError if it makes other shards than `new`."""
    existing = read_plan(out) if (out / PLAN_FILE).exists() else None
    if existing is not None and existing.digest() != new.digest():
        raise DataError(
            f"{out} belongs to another pack: {plan_differences(existing, new)}",
            f"pack into another folder (python jobs/pack.py {new.source} OTHER; then launch --data OTHER), "
            "or remove this one",
        )
    return existing


def plan_shards(split: str, items: list[Item], options: PackOptions) -> Iterator[ShardPlan]:
    """The images of one split, shuffled and dealt out to its shards."""
    order = sorted(items, key=lambda item: item.key)
    random.Random(f"order-{split}-{options.seed}").shuffle(order)
    starts = range(0, len(order), options.shard_images)
    for number, start in enumerate(starts):
        name = f"{split}-{number:05d}-of-{len(starts):05d}.h5"
        yield ShardPlan(name, split, tuple(order[start : start + options.shard_images]))


def plan_differences(existing: Plan, new: Plan) -> str:
    """What tells two plans apart."""
    differences = []
    for name, value in asdict(replace(existing.options, max_bad=new.options.max_bad)).items():
        new_value = getattr(new.options, name)
        if value != new_value:
            differences.append(f"{name}: {value} there, {new_value} asked for")
    count, new_count = count_images(existing.shards), count_images(new.shards)
    if count != new_count:
        differences.append(f"images: {count} there, {new_count} in the source")
    return "; ".join(differences) or "it was made from other files"


def read_plan(out: Path) -> Plan:
    """OUT/plan.json; DataError if there is none, DamagedFile if it is damaged or edited."""
    path = out / PLAN_FILE
    plan = read_record(path, Plan)
    if plan is None:
        raise DataError(f"{out} has no {PLAN_FILE}", "start with: python jobs/pack.py SOURCE OUT")
    strange = {item.label for item in plan.items()} - {*plan.class_names}
    strange |= {shard.name for shard in plan.shards if not SHARD_NAME.fullmatch(shard.name)}
    if plan.kind == "phantom":
        strange |= {item.key for item in plan.items() if not item.key.rpartition("/")[2].isdecimal()}
    if strange:
        raise DamagedFile(f"{path} is damaged: it cannot hold {min(strange)!r}", plan.IF_DAMAGED)
    return plan
