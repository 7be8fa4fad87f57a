"""Packs the shards of a plan, any part of them anywhere, and joins them at the end."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import PIL
from msgspec.structs import replace

from data_prep import audit
from data_prep.decode_pool import MAX_WORKERS, decoder
from data_prep.dicom import import_pydicom
from data_prep.errors import DataError
from data_prep.files import only_holder, write_text, writing
from data_prep.items import Item
from data_prep.manifest import MANIFEST_FILE, Manifest, refuse_changed, write_manifest
from data_prep.pack_plan import PLAN_FILE, Plan, ShardPlan, count_images, read_plan
from data_prep.shard_reader import is_complete, read_rejects
from data_prep.shards import Packed, Reject, write_shard
from data_prep.sources import SALT_FILE, find_paths

log = logging.getLogger(__name__)

QUARANTINE_FILE = "quarantine.jsonl"
# What a packed folder holds beside shards and manifest.
KEPT_FILES = (audit.AUDIT_FILE, PLAN_FILE, QUARANTINE_FILE, SALT_FILE)
Progress = Callable[[int], None]


def pack_part(
    out: Path, part: int = 0, num_parts: int = 1, workers: int = 1, progress: Progress = lambda _: None
) -> None:
    """Write shards number `part`, `part + num_parts`, ... of OUT's plan that are not there yet.

    Parts may run at the same time on different nodes. `progress` is told how many more images are done, first
    those of an earlier attempt. DataError if too many files are unusable, the disk is full, or a worker died.
    """
    if not 0 <= part < num_parts or not 1 <= workers <= MAX_WORKERS:
        given = f"--task {part} --tasks {num_parts} --workers {workers}"
        raise DataError(f"{given} is not allowed", f"0 <= task < tasks, and 1 to {MAX_WORKERS} workers")
    plan = read_plan(out)
    if plan.kind == "dicom":
        import_pydicom()
    with only_holder(out / f".packing-{part}-of-{num_parts}") as is_ours:
        if not is_ours:  # no two may write the same shard
            this = f"part {part} of {num_parts} of {out}"
            raise DataError(f"another process is packing {this}", "wait for it, or end it")
        pack_shards(out, plan, plan.shards[part::num_parts], workers, progress)


def pack_shards(out: Path, plan: Plan, shards: Sequence[ShardPlan], workers: int, progress: Progress) -> None:
    """Write those of `shards` that are not there yet; all their images are decoded in one stream."""
    about: dict[str, int | str] = {  # what every shard says about itself
        "class_names": json.dumps(plan.class_names),
        "recipe": json.dumps(plan.recipe, sort_keys=True),
        "order_seed": plan.options.seed,
        "pillow": PIL.__version__,
        "plan_sha256": plan.digest,
    }
    missing = [shard for shard in shards if not is_complete(out / shard.name, plan.digest)]
    if missing and (out / MANIFEST_FILE).exists():
        refuse_changed(out, {shard.name for shard in plan.shards} - {shard.name for shard in missing})
        (out / MANIFEST_FILE).unlink(missing_ok=True)  # the folder is not whole until it is finalized
    progress(count_images(shards) - count_images(missing))
    with decoder(plan, workers if missing else 1) as decode:
        images = decode(with_paths(out, plan, chain.from_iterable(shard.items for shard in missing)))
        images = watched(out, plan, images, progress)
        for shard in missing:
            path = out / shard.name
            remove_leftovers(path)
            attributes, own_images = {"split": shard.split, **about}, islice(images, len(shard.items))
            with writing(path):
                write_shard(path, plan.options.size_px, attributes, own_images)


def with_paths(out: Path, plan: Plan, items: Iterable[Item]) -> Iterator[Item]:
    """Items with the paths of their files, which a plan does not hold where names are hidden.

    One that has gone from the source keeps none, and will not be found.
    """
    paths: dict[str, str] | None = None
    for item in items:
        if plan.hides_names and not item.path:  # plans of earlier versions have it
            paths = find_paths(plan.source, Path(plan.root), plan.kind, out) if paths is None else paths
            item = replace(item, path=paths.get(item.key, ""))
        yield item


def watched(out: Path, plan: Plan, images: Iterable[Packed], progress: Progress) -> Iterator[Packed]:
    """Pass images through; the pack ends as soon as it is certain that too many are bad."""
    rejects: list[Reject] = []
    for image in images:
        if isinstance(image, Reject):
            log.warning("quarantined: %s %s", image.key, image.reason)
            rejects.append(image)
            refuse_too_many(out, plan, rejects)
        progress(1)
        yield image


def refuse_too_many(out: Path, plan: Plan, rejects: Sequence[Reject]) -> None:
    """Raise DataError if more than `max_bad` of the files are bad; then only their list stays in OUT."""
    num_images = count_images(plan.shards)
    if len(rejects) <= plan.options.max_bad * num_images:
        return
    write_quarantine(out, plan, rejects)
    for shard in plan.shards:
        (out / shard.name).unlink(missing_ok=True)
        remove_leftovers(out / shard.name)
    (out / PLAN_FILE).unlink(missing_ok=True)
    raise DataError(
        f"{len(rejects)} of {num_images} files are unusable, more than --max-bad "
        f"{plan.options.max_bad:g}; such as {rejects[0].key}, which {rejects[0].reason}",
        f"fix or remove the files in {QUARANTINE_FILE} of the shards' folder, or raise --max-bad",
    )


def write_quarantine(out: Path, plan: Plan, rejects: Sequence[Reject]) -> None:
    """List the bad files and their reasons, one JSON object a line.

    `path` is below the source's folder: the only place where a name is written that is hidden elsewhere, as
    the user has to find the file. Not so with --hash-names.
    """
    bad = {reject.key for reject in rejects}
    items: Iterable[Item] = (item for item in plan.items() if item.key in bad)
    named = items if plan.hash_names else with_paths(out, plan, items)
    paths = {item.key: item.path or item.key for item in named}
    rows = ({**asdict(reject), "path": paths.get(reject.key, reject.key)} for reject in rejects)
    lines = [json.dumps(row) + "\n" for row in rows]
    write_text(out / QUARANTINE_FILE, "".join(lines))


def remove_leftovers(path: Path) -> None:
    """Remove what a killed writer of this shard left; nobody else writes it."""
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        leftover.unlink(missing_ok=True)


def finalize(out: Path) -> Manifest:
    """Join OUT's shards: quarantine.jsonl, audit.json and, last, manifest.json; DataError if one lacks."""
    plan = read_plan(out)
    names = [shard.name for shard in plan.shards]
    missing = [name for name in names if not is_complete(out / name, plan.digest)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} shards are not packed yet, such as {missing[0]}",
            "run the missing parts: python jobs/pack.py SOURCE OUT --task T --tasks N",
        )
    refuse_changed(out, names)
    rejects = list(chain.from_iterable(read_rejects(out / name) for name in names))
    refuse_too_many(out, plan, rejects)
    with writing(out):
        write_quarantine(out, plan, rejects)
        if not audit.write(out, names, plan.class_names).splits.get("train"):
            raise DataError(
                "no image is left to train on", f"see {QUARANTINE_FILE}: all of them are unusable"
            )
        return write_manifest(out, plan.recipe, plan.class_names, names, KEPT_FILES)
