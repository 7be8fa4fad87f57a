"""Which images a launch trains on: packed ones, or a source that is packed first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import DataError, SettingsError
from data_prep.shards import MANIFEST_FILE, read_manifest

SHARDS_DIR = Path("shards")


@dataclass(frozen=True)
class Data:
    """The images to train on: packed, or about to be."""

    folder: Path
    image_size_px: int
    num_train_images: int
    num_shards: int | None
    """Shards to be packed; None when that is done."""
    source: str = ""
    """What they are packed from."""


def find_data(asked: str | None, size_px: int | None) -> Data:
    """The data asked for, or the only packed ones; without a size, packed images keep theirs.

    Raises:
        SettingsError, DataError: there are none, they cannot be used, or they are packed in another size.
    """
    if asked is None or (Path(asked) / MANIFEST_FILE).exists():
        data = packed_data(only_packed(SHARDS_DIR) if asked is None else Path(asked))
        refuse_other_size(data.folder, data.image_size_px, size_px)
        return data
    from data_prep.pack_plan import PLAN_FILE, PackOptions, plan, read_plan

    if (Path(asked) / PLAN_FILE).exists():
        raise DataError(
            f"{asked} holds images that are not packed to the end: {MANIFEST_FILE} is missing",
            f"python jobs/pack.py {read_plan(Path(asked)).source} {asked} goes on",
        )
    options = PackOptions(size_px=size_px or PackOptions().size_px)
    out = (SHARDS_DIR / safe_name(Path(asked).stem if asked.endswith(".csv") else Path(asked).name)).resolve()
    if (out / PLAN_FILE).exists():
        refuse_other_size(out, read_plan(out).options.size_px, options.size_px)
    planned = plan(asked, out, options, write=False)
    if (out / MANIFEST_FILE).exists():
        return packed_data(out)
    num_train_images = sum(len(shard.items) for shard in planned.shards if shard.split == "train")
    return Data(out, options.size_px, num_train_images, len(planned.shards), asked)


def refuse_other_size(folder: Path, size_px: int, asked_px: int | None) -> None:
    """Raise SettingsError if images packed at `size_px` are asked for in another size."""
    if asked_px not in (None, size_px):
        raise SettingsError(
            f"the images in {folder} are {size_px} px wide, not the {asked_px} px asked for",
            f"use --size {size_px}, or pack them again: "
            f"python jobs/pack.py SOURCE {SHARDS_DIR}/{folder.name}-{asked_px} --size {asked_px}",
        )


def write_plan(data: Data) -> None:
    """Write down how the images will be packed, if they are not yet; the packing jobs read that."""
    if data.source:
        from data_prep.pack_plan import PackOptions, plan

        plan(data.source, data.folder, PackOptions(size_px=data.image_size_px))


def only_packed(folder: Path) -> Path:
    """The one packed data set below `folder`."""
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
    if not found:
        raise SettingsError(
            f"no packed images under {folder}/",
            "give --data a folder of images, a packed folder, or phantom:200 for made-up ones",
        )
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise SettingsError(f"several packed data sets under {folder}/: {names}", "choose one with --data")
    return found[0]


def packed_data(folder: Path) -> Data:
    """Packed shards, from their manifest."""
    manifest = read_manifest(folder)
    return Data(folder.resolve(), manifest.image_size_px, manifest.num_images("train"), None)


def safe_name(text: str) -> str:
    """`text` as a folder name that shells and SLURM take as it is: `phantom:48` becomes phantom-48."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "data"
