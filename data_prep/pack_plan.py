"""The plan of a pack, kept as plan.json: every image in one split and shard, and how its pixels are made.

It is fixed before the first pixel is read, so a pack that was killed ends with the same bytes as one that was
not, and many parts write the same files as one process.
"""

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar

import msgspec
from msgspec.structs import asdict, replace

from data_prep.errors import DamagedFile, DataError
from data_prep.files import replacing, writing
from data_prep.image import REDUCING_GAP, Aspect
from data_prep.items import Item, Kind
from data_prep.json_records import Record, read_record
from data_prep.shards import SHARD_NAME, SPLITS, Recipe
from data_prep.sources import USUAL, Naming, find_items, keep_salt
from data_prep.splits import cut_splits

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
MAX_SHARD_IMAGES = 1_000_000


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
        if not 1 <= self.shard_images <= MAX_SHARD_IMAGES:
            raise DataError(
                f"--shard-images {self.shard_images} is not allowed", f"1 to {MAX_SHARD_IMAGES:,}"
            )
        if not 0 <= self.seed < 2**63:  # what a shard can hold
            raise DataError(f"--seed {self.seed} is not allowed", "0 to 2**63 - 1")
        if not 0 <= self.max_bad <= 1:
            raise DataError(f"--max-bad {self.max_bad} is not allowed", "0 to 1, as 0.01 for 1 %")


class ShardPlan(Record, frozen=True):
    """One shard to write: its name and its images in order."""

    name: str
    split: str
    items: tuple[Item, ...]


class Plan(Record, frozen=True, dict=True, omit_defaults=True):
    """Everything that decides the bytes of every shard."""

    IF_DAMAGED: ClassVar[str] = "delete it and pack again"

    source: str
    kind: Kind
    root: str
    options: PackOptions
    class_names: tuple[str, ...]
    shards: tuple[ShardPlan, ...]
    hash_names: bool = False
    """Whether the names of files that are no DICOM are hidden, too."""

    @property
    def hides_names(self) -> bool:
        """Whether keys are salted hashes; `sources.find_paths` knows the files."""
        return self.hash_names or self.kind == "dicom"

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

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan without source path and max_bad; takes 13 s for a million images, so once."""
        options = replace(self.options, max_bad=0.0)  # neither changes the output
        values = msgspec.to_builtins(replace(self, source="", root="", options=options))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def count_images(shards: Iterable[ShardPlan]) -> int:
    """Files that the plan assigns to `shards`."""
    return sum(len(shard.items) for shard in shards)


def plan(source: str, out: Path, options: PackOptions, write: bool = True, naming: Naming = USUAL) -> Plan:
    """Decide which image of `source` goes into which shard, and `write` that down as OUT/plan.json.

    `source` is a folder, CSV file, DICOM folder or `phantom:N`. Raises DataError if it cannot be used, one
    patient is on two sides, nothing is left to train on, or OUT holds another plan; DamagedFile if that is
    damaged.
    """
    # Splits by patient, then one seeded shuffle, then shards.
    listing = find_items(source, out, write, naming)
    splits = cut_splits(listing.items, options.val_fraction, options.seed)
    shards = chain.from_iterable(plan_shards(split, splits[split], options) for split in SPLITS)
    class_names = tuple(sorted({item.label for item in listing.items}))
    if len(class_names) > 256:
        raise DataError(f"{source} has {len(class_names)} classes", "at most 256; are these class folders?")
    hash_names = naming.hash_names and listing.kind != "phantom"
    new = Plan(source, listing.kind, str(listing.root), options, class_names, tuple(shards), hash_names)
    # Keep it, or see that it fits.
    if write:
        write_plan(out, new)
    else:
        existing_plan(out, new)
    cuts = () if new.kind == "phantom" else notes_on_cuts(splits)
    for note in (*listing.notes, *cuts):
        log.warning("%s", note)
    return new


def notes_on_cuts(splits: dict[str, list[Item]]) -> Iterator[str]:
    """What the source did not say of validation and test."""
    for split in ("val", "test"):
        count = sum(item.split != split for item in splits[split])
        if count:
            what = "in whole patients, as the source has none" if split == "test" else "in whole patients"
            yield f"cut for {split}: {count} of the images for training, {what}"


def write_plan(out: Path, new: Plan) -> None:
    """Keep `new`, which may have been made without writing, as OUT/plan.json. Raises as `plan`."""
    if new.hides_names and not keep_salt(out):
        raise DataError(f"somebody else has just begun to pack into {out}", "run the same command again")
    if existing_plan(out, new) != new:
        with writing(out / PLAN_FILE), replacing(out / PLAN_FILE) as part:
            part.write_bytes(plan_json(new))


def plan_json(plan: Plan) -> bytes:
    """A plan as indented JSON, without a dictionary for each of perhaps a million items."""
    try:
        return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"
    except UnicodeEncodeError:  # the source has an odd byte in its name
        return json.dumps(msgspec.to_builtins(plan), indent=2).encode() + b"\n"


def existing_plan(out: Path, new: Plan) -> Plan | None:
    """The plan that OUT holds, if any; DataError if it makes other shards than `new`."""
    existing = read_plan(out) if (out / PLAN_FILE).exists() else None
    if existing not in (None, new) and existing.digest != new.digest:
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
    if existing.class_names != new.class_names:
        differences.append(
            f"classes: {len(existing.class_names)} there, {len(new.class_names)} here, by name"
        )
    if existing.hides_names != new.hides_names:
        differences.append("names of files are hidden in one of the two (--hash-names)")
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
