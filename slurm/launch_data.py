"""Which images a launch trains on: packed ones, or a source that is packed first."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import DataError, SettingsError
from data_prep.manifest import MANIFEST_FILE, read_manifest

if TYPE_CHECKING:
    from data_prep.pack_plan import Plan

SHARDS_DIR = Path("shards")


@dataclass(frozen=True)
class Data:
    """The images to train on: packed, or about to be."""

    folder: Path
    image_size_px: int
    num_train_images: int
    plan: "Plan | None" = None
    """How they are going to be packed; None when that is done."""


def find_data(shards_or_source: str | None, size_px: int | None) -> Data:
    """The data asked for, or the only packed ones, in that size or their own; or an error says why not."""
    if shards_or_source is None or (Path(shards_or_source) / MANIFEST_FILE).exists():
        data = packed_data(Path(only_packed(SHARDS_DIR) if shards_or_source is None else shards_or_source))
        refuse_other_size(data.folder, data.image_size_px, size_px)
        return data
    return data_of_source(shards_or_source, size_px)


def data_of_source(source: str, size_px: int | None) -> Data:
    """Packed images of a source, or the plan by which they will be packed. Raises as `find_data`."""
    from data_prep.pack_plan import PLAN_FILE, PackOptions, plan, read_plan

    if (Path(source) / PLAN_FILE).exists():
        missing = f"{source} holds images that are not packed to the end: {MANIFEST_FILE} is missing"
        raise DataError(missing, f"python jobs/pack.py {read_plan(Path(source)).source} {source} goes on")
    options = PackOptions(size_px=size_px or PackOptions().size_px)
    name = Path(source).stem if source.endswith(".csv") else Path(source).name
    out = (SHARDS_DIR / safe_name(name)).resolve()
    if (out / PLAN_FILE).exists():
        refuse_other_size(out, read_plan(out).options.size_px, options.size_px)
    new = plan(source, out, options, write=False)
    if (out / MANIFEST_FILE).exists():
        return packed_data(out)
    num_train_images = sum(len(shard.items) for shard in new.shards if shard.split == "train")
    return Data(out, options.size_px, num_train_images, new)


def refuse_other_size(folder: Path, size_px: int, wanted_px: int | None) -> None:
    """Raise SettingsError if images packed at `size_px` are asked for in another size."""
    if wanted_px not in (None, size_px):
        other = f"the images in {folder} are {size_px} px wide, not the {wanted_px} px asked for"
        command = f"python jobs/pack.py SOURCE {SHARDS_DIR}/{folder.name}-{wanted_px} --size {wanted_px}"
        raise SettingsError(other, f"use --size {size_px}, or pack them again: {command}")


def write_data_plan(data: Data) -> None:
    """Write down how the images will be packed, if they are not yet; the packing jobs read that."""
    if data.plan is not None:
        from data_prep.pack_plan import write_plan

        write_plan(data.folder, data.plan)


def only_packed(folder: Path) -> Path:
    """The one packed data set below `folder`."""
    folders = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
    if not folders:
        hint = "give --data a folder of images, a packed folder, or phantom:200 for made-up ones"
        raise SettingsError(f"no packed images under {folder}/", hint)
    if len(folders) > 1:
        names = ", ".join(map(str, folders))
        raise SettingsError(f"several packed data sets under {folder}/: {names}", "choose one with --data")
    return folders[0]


def packed_data(folder: Path) -> Data:
    """Packed shards, from their manifest."""
    manifest = read_manifest(folder)
    return Data(folder.resolve(), manifest.image_size_px, manifest.num_images("train"))


def safe_name(text: str) -> str:
    """`text` as a folder name that shells and SLURM take as it is: `phantom:48` becomes phantom-48."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "data"
