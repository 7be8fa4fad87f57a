"""From a source to shards: plan first, pack any part of it anywhere, join at the end.

    plan       list the source, cut the splits by patient, shuffle, assign images to shards -> plan.json
    pack_part  write shards t, t + T, ... of the plan; those that are whole already are left alone
    finalize   when every shard is there: quarantine.jsonl, audit.json, and manifest.json last

Which image lies where is fixed by the plan, so a pack that was killed ends with the same bytes as one that
was not, and T array tasks write the same files as one process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import signal
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import PIL

from data_prep import audit
from data_prep.errors import DataError
from data_prep.files import only_holder, write_json, write_text
from data_prep.image import (
    REDUCING_GAP,
    Aspect,
    BadImageError,
    Picture,
    make_dicom_picture,
    make_picture,
    read_file,
)
from data_prep.shards import (
    MANIFEST_FILE,
    SPLITS,
    ImageRecord,
    Manifest,
    Reject,
    is_complete,
    read_rejects,
    write_manifest,
    write_shard,
)
from data_prep.sources import Item, Source, find_items, import_pydicom, unescape

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
QUARANTINE_FILE = "quarantine.jsonl"
LOCK_FILE = ".packing"
# Below this share of the wanted size a given validation split is too small to choose by (Kaggle's: 16).
TINY_VAL_SHARE = 0.5
# Images handed to a worker at a time: enough to hide the hand-over, few enough for a smooth progress bar.
CHUNK_IMAGES = 8
# Chunks per worker that may wait to be written: a second of decoding, as long as a shard is synced to disk.
AHEAD_CHUNKS = 32

Packed = tuple[ImageRecord, bytes] | Reject


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of the shards."""

    size_px: int = 256
    """Side of the square images; as published."""
    aspect: Aspect = "stretch"
    """stretch: fill the square (as published); pad: black borders; crop: cut the longer side."""
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
            raise DataError(
                f"--max-bad {self.max_bad} is not allowed", "a share from 0 to 1, as 0.01 for 1 %"
            )


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its name and its images in order."""

    name: str
    split: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of every shard."""

    source: str
    kind: str
    root: str
    options: PackOptions
    class_names: tuple[str, ...]
    shards: tuple[ShardPlan, ...]

    @property
    def num_images(self) -> int:
        """Files that the plan assigns to shards."""
        return sum(len(shard.items) for shard in self.shards)

    @property
    def recipe(self) -> dict[str, Any]:
        """How pixels are made, stored in every shard."""
        recipe = {"size_px": self.options.size_px, "aspect": self.options.aspect}
        if self.kind == "phantom":
            return {**recipe, "filter": "none: drawn at this size", "seed": self.options.seed}
        return {**recipe, "filter": "bicubic", "reducing_gap": REDUCING_GAP, "grey": "luma (ITU-R 601)"}

    @property
    def sha256(self) -> str:
        """Digest of the plan, but for where the source lies and how many bad files are borne."""
        values = asdict(replace(self, source="", root="", options=replace(self.options, max_bad=0.0)))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# --- plan --------------------------------------------------------------------------------------


def plan(source: str, out: Path, options: PackOptions, write: bool = True) -> Plan:
    """Decide which image goes into which shard, and write that down as OUT/plan.json.

    Args:
        source: folder, CSV file, DICOM folder or `phantom:N`.
        out: folder of the shards; made if need be.
        options: size, splits, order.
        write: False only computes, for a dry run.

    Raises:
        DataError: the source cannot be used, one patient is on two sides, or OUT holds another plan.
    """
    found = find_items(source, out, may_write=write)
    made = make_plan(source, found, options)
    if (out / PLAN_FILE).exists():
        known = read_plan(out)
        if known.sha256 != made.sha256:
            raise DataError(
                f"{out} belongs to another pack: {'; '.join(plan_differences(known, made))}",
                "choose another folder for the shards, or remove this one",
            )
    if write:
        with writing(out / PLAN_FILE):
            write_json(out / PLAN_FILE, asdict(made))
    return made


def make_plan(source: str, found: Source, options: PackOptions) -> Plan:
    """Splits by patient, then one seeded shuffle, then shards: a pure function of its arguments."""
    splits = cut_splits(found.items, options)
    shards: list[ShardPlan] = []
    for split in SPLITS:
        items = sorted(splits[split], key=lambda item: item.key)
        random.Random(f"order-{split}-{options.seed}").shuffle(items)
        count = math.ceil(len(items) / options.shard_images)
        for number in range(count):
            name = f"{split}-{number:05d}-of-{count:05d}.h5"
            part = items[number * options.shard_images : (number + 1) * options.shard_images]
            shards.append(ShardPlan(name, split, tuple(part)))
    class_names = tuple(sorted({item.label for item in found.items}))
    if len(class_names) > 256:
        raise DataError(f"{source} has {len(class_names)} classes", "at most 256; are these class folders?")
    return Plan(source, found.kind, str(found.root), options, class_names, tuple(shards))


def cut_splits(items: Iterable[Item], options: PackOptions) -> dict[str, list[Item]]:
    """Assign every image to train, val or test; all images of a patient to the same.

    Test stays as given. Validation is cut from train, class by class, if it is missing or tiny; so is test if
    the source gives none.

    Raises:
        DataError: the source itself has a patient on two sides.
    """
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        splits[item.split or "train"].append(item)
    rest = len(splits["train"]) + len(splits["val"])
    if len(splits["val"]) < TINY_VAL_SHARE * options.val_fraction * rest:
        splits["train"] += splits["val"]
        splits["val"] = []
    refuse_shared_patients(splits)
    for split in ("test", "val"):
        if not splits[split]:
            splits[split], splits["train"] = cut_patients(splits["train"], options, split)
    return splits


def cut_patients(items: list[Item], options: PackOptions, name: str) -> tuple[list[Item], list[Item]]:
    """About `val_fraction` of each class, in whole patients; and the rest."""
    by_class: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    owner: dict[str, str] = {}  # a patient with images of two classes counts for the first
    for item in sorted(items, key=lambda item: item.key):
        patient = item.group or item.key
        by_class[owner.setdefault(patient, item.label)][patient].append(item)
    cut: list[Item] = []
    for label, patients in sorted(by_class.items()):
        wanted = max(1, round(options.val_fraction * sum(map(len, patients.values()))))
        order = sorted(patients)
        random.Random(f"{name}-{label}-{options.seed}").shuffle(order)
        taken: list[Item] = []
        while len(taken) < wanted and order:
            taken += patients[order.pop()]
        cut += taken
    chosen = {item.key for item in cut}
    return cut, [item for item in items if item.key not in chosen]


def refuse_shared_patients(splits: dict[str, list[Item]]) -> None:
    """Raise DataError if a patient has images in two splits."""
    first: dict[str, tuple[str, Item]] = {}
    shared: dict[str, str] = {}  # by patient, where two of the images lie
    for split in SPLITS:
        for item in splits[split]:
            there, other = first.setdefault(item.group, (split, item))
            if item.group and there != split:
                files = f"{other.path or other.key} in {there}, {item.path or item.key} in {split}"
                shared.setdefault(item.group, files)
    if shared:
        some = "; ".join(f"{patient}: {files}" for patient, files in sorted(shared.items())[:3])
        count = "1 patient has" if len(shared) == 1 else f"{len(shared)} patients have"
        raise DataError(
            f"{count} images in two splits, such as {some}",
            "correct the splits of the source, or leave them out to have them cut by patient",
        )


def plan_differences(known: Plan, made: Plan) -> list[str]:
    """What tells two plans apart, one line each."""
    found = [
        f"{name}: {getattr(known.options, name)} there, {getattr(made.options, name)} asked for"
        for name in asdict(known.options)
        if name != "max_bad" and getattr(known.options, name) != getattr(made.options, name)
    ]
    if known.num_images != made.num_images:
        found.append(f"images: {known.num_images} there, {made.num_images} in the source")
    return found or ["it was made from other files"]


def read_plan(out: Path) -> Plan:
    """OUT/plan.json.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        values = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
        shards = tuple(
            ShardPlan(shard["name"], shard["split"], tuple(Item(**item) for item in shard["items"]))
            for shard in values.pop("shards")
        )
        options = PackOptions(**values.pop("options"))
        class_names = tuple(values.pop("class_names"))
        return Plan(**values, options=options, class_names=class_names, shards=shards)
    except FileNotFoundError as error:
        raise DataError(f"{out} has no {PLAN_FILE}", "start with: python jobs/pack.py SOURCE OUT") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out / PLAN_FILE} is damaged", "delete it and pack again") from error


# --- pack --------------------------------------------------------------------------------------


def pack_part(
    out: Path,
    task: int = 0,
    tasks: int = 1,
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write shards number `task`, `task + tasks`, ... of OUT's plan that are not there yet.

    Args:
        out: folder with plan.json.
        task: this part, 0 to tasks - 1.
        tasks: parts in all; they may run at the same time on different nodes.
        workers: processes that decode; 1 decodes in this one.
        progress: told how many images are done each time.

    Raises:
        DataError: too many files are unusable, the disk is full, or a worker died.
    """
    if not 0 <= task < tasks or workers < 1:
        raise DataError(
            f"--task {task} --tasks {tasks} --workers {workers} is not allowed", "0 <= task < tasks"
        )
    made = read_plan(out)
    if made.kind == "dicom":
        import_pydicom()
    mine = made.shards[task::tasks]
    with only_holder(out / f"{LOCK_FILE}-{task}-of-{tasks}") as is_ours:
        if not is_ours:
            raise DataError(
                f"another process is packing part {task} of {tasks} of {out}", "wait for it, or end it"
            )
        missing = [shard for shard in mine if not is_complete(out / shard.name, made.sha256)]
        progress(sum(len(shard.items) for shard in mine if shard not in missing))
        try:
            with decoder(made, workers if missing else 1) as decode:
                pack_shards(out, made, missing, decode, progress)
        except TooManyBadError as error:
            take_back(out, made, error.rejects)
            raise


def pack_shards(
    out: Path,
    made: Plan,
    shards: Sequence[ShardPlan],
    decode: Callable[[Iterable[Item]], Iterator[Packed]],
    progress: Callable[[int], None],
) -> None:
    """Decode the images of all `shards` in one stream and write each shard as its images come."""
    stream = decode(item for shard in shards for item in shard.items)
    rejects: list[Reject] = []
    for shard in shards:
        remove_leftovers(out, shard.name)
        images = watched(made, islice(stream, len(shard.items)), rejects, progress)
        with writing(out / shard.name):
            write_shard(out / shard.name, made.options.size_px, attributes(made, shard), images)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, and all else that keeps `path` from being written, into one clear line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}",
            "make room there, then run the same command again; it goes on where it stopped",
        ) from error


def attributes(made: Plan, shard: ShardPlan) -> dict[str, Any]:
    """What a shard says about itself."""
    return {
        "split": shard.split,
        "class_names": json.dumps(made.class_names),
        "recipe": json.dumps(made.recipe, sort_keys=True),
        "order_seed": made.options.seed,
        "pillow": PIL.__version__,
        "plan_sha256": made.sha256,
    }


class TooManyBadError(DataError):
    """More files than `max_bad` allows are unusable."""

    def __init__(self, made: Plan, rejects: Sequence[Reject]) -> None:
        super().__init__(
            f"{len(rejects)} of {made.num_images} files are unusable, more than --max-bad "
            f"{made.options.max_bad:g}; such as {rejects[0].key}, which {rejects[0].reason}",
            f"mend or remove the files in {QUARANTINE_FILE} of the shards' folder, or raise --max-bad",
        )
        self.rejects = rejects


def refuse_too_many(made: Plan, rejects: Sequence[Reject]) -> None:
    """Raise TooManyBadError if more than `max_bad` of the plan's files are bad."""
    if len(rejects) > made.options.max_bad * made.num_images:
        raise TooManyBadError(made, rejects)


def take_back(out: Path, made: Plan, rejects: Sequence[Reject]) -> None:
    """Undo a pack that must not be used: only the list of bad files stays behind."""
    write_quarantine(out, made, rejects)
    for shard in made.shards:
        (out / shard.name).unlink(missing_ok=True)
        remove_leftovers(out, shard.name)
    (out / PLAN_FILE).unlink(missing_ok=True)


def write_quarantine(out: Path, made: Plan, rejects: Sequence[Reject]) -> None:
    """List the bad files and their reasons, one JSON object a line; `path` is below the source's folder."""
    paths = {item.key: item.path or item.key for shard in made.shards for item in shard.items}
    lines = [json.dumps({**asdict(reject), "path": paths[reject.key]}) + "\n" for reject in rejects]
    write_text(out / QUARANTINE_FILE, "".join(lines))


def watched(
    made: Plan, images: Iterable[Packed], rejects: list[Reject], progress: Callable[[int], None]
) -> Iterator[Packed]:
    """Pass images through, noting the bad ones; stops as soon as it is certain that there are too many."""
    for image in images:
        if isinstance(image, Reject):
            log.warning("quarantined: %s %s", image.key, image.reason)
            rejects.append(image)
            refuse_too_many(made, rejects)
        progress(1)
        yield image


def remove_leftovers(out: Path, name: str) -> None:
    """Remove what a killed writer of this shard left; nobody else writes it."""
    for path in out.glob(f".{name}.*.part"):
        path.unlink(missing_ok=True)


@contextmanager
def decoder(made: Plan, workers: int) -> Iterator[Callable[[Iterable[Item]], Iterator[Packed]]]:
    """A function that turns items into pixels, in order, in this process or in `workers` others.

    The workers are spawned, not forked: they share no file handles, locks or threads with this process.
    """
    job = partial(load, made.kind, Path(made.root), made.options, made.class_names)
    if workers == 1:
        yield lambda items: map(job, items)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        yield lambda items: _decode_in(pool, job, items, AHEAD_CHUNKS * workers)
    except BrokenProcessPool as error:
        # the pool waits for all its workers, but does not end one that was just starting when another died
        for worker in active_children():
            worker.kill()
        raise DataError(
            "a worker process died; the machine may be out of memory",
            "run the same command again, perhaps with fewer --workers; it goes on with this shard",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_in(
    pool: ProcessPoolExecutor, job: Callable[[Item], Packed], items: Iterable[Item], ahead: int
) -> Iterator[Packed]:
    """Like map(job, items), but in the pool; at most `ahead` chunks wait, so memory stays small."""
    waiting: deque[Future[list[Packed]]] = deque()
    items = iter(items)
    while chunk := list(islice(items, CHUNK_IMAGES)):
        try:
            waiting.append(pool.submit(_decode_chunk, job, chunk))
        except (OSError, ValueError) as error:  # one worker died while another was being started
            raise BrokenProcessPool(str(error)) from error
        if len(waiting) == ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _decode_chunk(job: Callable[[Item], Packed], chunk: list[Item]) -> list[Packed]:
    return [job(item) for item in chunk]


def _start_worker() -> None:
    """Leave signals that are meant for the job to the process that leads it, and end when it ends."""
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool whose leader was killed would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def load(kind: str, root: Path, options: PackOptions, class_names: tuple[str, ...], item: Item) -> Packed:
    """One image as a record and its pixels, or as a reject with the reason."""
    label = class_names.index(item.label)
    content = b""
    try:
        if kind == "phantom":
            picture = draw(item, options)
            content = picture.pixels.tobytes()
        else:
            path = root / unescape(item.path or item.key)
            content = read_file(path)
            picture = decode_file(kind, content, path.suffix, options)
    except BadImageError as error:
        return Reject(item.key, label, str(error), hashlib.sha256(content).hexdigest() if content else "")
    record = ImageRecord(
        key=item.key,
        label=label,
        group=item.group,
        source_sha256=hashlib.sha256(content).hexdigest(),
        source_bytes=len(content),
        source_width_px=picture.width_px,
        source_height_px=picture.height_px,
        source_mode=picture.mode,
    )
    return record, picture.pixels.tobytes()


def decode_file(kind: str, content: bytes, suffix: str, options: PackOptions) -> Picture:
    """The picture in a file of a `dicom` or `files` source."""
    if kind == "dicom":
        return make_dicom_picture(content, options.size_px, options.aspect)
    return make_picture(content, suffix, options.size_px, options.aspect)


def draw(item: Item, options: PackOptions) -> Picture:
    """A phantom radiograph."""
    from data_prep import phantom

    number = int(item.key.rpartition("/")[2])
    pixels = phantom.render(number, item.label == "PNEUMONIA", options.size_px, options.seed)
    return Picture(pixels, options.size_px, options.size_px, "L")


# --- join --------------------------------------------------------------------------------------


def is_packed(out: Path) -> bool:
    """Whether OUT is a finished data set: the manifest is written last."""
    return (out / MANIFEST_FILE).exists()


def finalize(out: Path) -> Manifest:
    """Join the shards of OUT's plan: quarantine.jsonl, audit.json and, last, manifest.json.

    Raises:
        DataError: shards are missing, or too many files were unusable (then the shards are removed).
    """
    made = read_plan(out)
    missing = [shard.name for shard in made.shards if not is_complete(out / shard.name, made.sha256)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(made.shards)} shards are not packed yet, such as {missing[0]}",
            "run the missing parts: python jobs/pack.py SOURCE OUT --task T --tasks N",
        )
    rejects = [reject for shard in made.shards for reject in read_rejects(out / shard.name)]
    try:
        refuse_too_many(made, rejects)
    except TooManyBadError:
        take_back(out, made, rejects)
        raise
    with writing(out):
        write_quarantine(out, made, rejects)
        audit.write(out, [out / shard.name for shard in made.shards], made.class_names)
        return write_manifest(out, made.recipe, made.class_names, [shard.name for shard in made.shards])
