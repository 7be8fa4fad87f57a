"""The shard format: HDF5 files that are also plain arrays of pixels, and the manifest over them.

A shard `train-00000-of-00008.h5` is an ordinary HDF5 file. For its n images it holds
    images                             uint8 [n, H, W], contiguous, unfiltered, on a page border:
                                       a memory map at `data_offset` reads it at memcpy speed
    labels                             uint8 [n], index into the class names
    crc32                              uint32 [n], zlib.crc32 of each image's pixels
    key                                UTF-8 [n], where the image came from (see sources.escape)
    group                              UTF-8 [n], the patient; empty where nobody knows
    source_sha256, source_mode         ASCII [n], of the file the image was made from
    source_bytes, _width_px, _height_px     int64 [n]
    quarantined                        JSON: the files that belonged here and could not be used
and attributes that say which recipe and plan made it; `complete` = 1 marks a whole file.

`manifest.json` names the shards of a data set with their digests. It is written after
everything else, so a folder with a manifest is whole. Readers open the manifest, never a glob.
"""

import hashlib
import io
import json
import math
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar

import h5py
import msgspec
import numpy as np
import numpy.typing as npt

from data_prep.errors import DamagedFile, DataError
from data_prep.files import replacing, sha256_file
from data_prep.json_records import Record, read_record, write_record

FORMAT = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val", "test")

PAGE_BYTES = 4096
# Only the pixels are as long as this, so only they are moved to a page border.
ALIGNED_BYTES = 1 << 16
SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.h5")
REPACK_HINT = "pack the images again: python jobs/pack.py SOURCE OUT"

Recipe = dict[str, int | float | str]  # how pixels are made
Attributes = Mapping[str, int | str]  # what a shard says about itself
Count = Annotated[int, msgspec.Meta(ge=0)]
Side = Annotated[int, msgspec.Meta(ge=1, le=65536)]  # of an image, in pixels


@dataclass(frozen=True)
class ImageRecord:
    """One packed image: what it shows and the file it was made from."""

    key: str
    label: int
    group: str
    source_sha256: str
    source_bytes: int
    source_width_px: int
    source_height_px: int
    source_mode: str


@dataclass(frozen=True)
class Reject:
    """One file that could not be used, and why; `key` names it like a packed image."""

    key: str
    label: int
    reason: str
    source_sha256: str
    """Empty if the file could not even be read."""


Packed = tuple[ImageRecord, bytes] | Reject
"""An image and its pixels, or why there are none."""


class ShardInfo(Record, frozen=True):
    """What the manifest says about one shard."""

    name: str
    split: str
    num_images: Count
    num_bytes: Count
    data_offset: Count
    sha256: str
    class_counts: tuple[Count, ...]
    image_size_px: Side


class Manifest(Record, frozen=True, kw_only=True):
    """A packed data set: its shards in order, and the recipe that made them."""

    IF_DAMAGED: ClassVar[str] = REPACK_HINT

    format: int = FORMAT
    fingerprint: str
    """Digest of the manifest when it was written: equal means the same data."""

    image_size_px: Side
    class_names: tuple[str, ...]
    recipe: Recipe
    splits: dict[str, tuple[ShardInfo, ...]]

    def shards(self) -> list[ShardInfo]:
        """All shards, split by split."""
        return list(chain.from_iterable(self.splits.values()))

    def digest(self) -> str:
        """SHA-256 over recipe, class names and shard digests."""
        digests = {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()}
        text = json.dumps([FORMAT, self.recipe, self.class_names, digests], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def num_images(self, split: str) -> int:
        """Number of images in a split; 0 if there is no such split."""
        return sum(shard.num_images for shard in self.splits.get(split, ()))


def write_shard(path: Path, size_px: int, attributes: Attributes, items: Iterable[Packed]) -> None:
    """Write one shard from images (record and size_px**2 bytes of pixels) and rejects, in order.

    The file appears under its name only when it is whole. Memory stays small: pixels go through an unnamed
    scratch file, because the number of usable images is known only at the end. Raises OSError if the disk is
    full, DataError if what was read back is not what was written.
    """
    rows: list[ImageRecord] = []
    crc32: list[int] = []
    rejects: list[Reject] = []
    with tempfile.TemporaryFile(dir=path.parent) as scratch, replacing(path) as part:
        # Take the images as they come.
        for item in items:
            if isinstance(item, Reject):
                rejects.append(item)
                continue
            record, pixels = item
            rows.append(record)
            crc32.append(zlib.crc32(pixels))
            scratch.write(pixels)
        # Put the pixels behind everything else.
        header, offset = _header(size_px, attributes, rows, crc32, rejects)
        with part.open("wb") as file:
            file.write(header)
            file.seek(offset)
            scratch.seek(0)
            shutil.copyfileobj(scratch, file)
        # Read them back.
        damaged = damaged_images(part, offset, size_px, np.asarray(crc32, np.uint32))
        if damaged:
            raise DataError(f"{path}: images {damaged[:5]} did not survive writing", "check the disk")


def _header(
    size_px: int, attributes: Attributes, rows: list[ImageRecord], crc32: list[int], rejects: list[Reject]
) -> tuple[bytes, int]:
    """All bytes of a shard but the pixels, and where in the file these belong."""
    num_bytes = len(rows) * size_px**2
    # HDF5 never writes to the disk here, for a full one makes it end the process
    memory = io.BytesIO()  # ends where the pixels begin, as `images` is the last thing created
    with h5py.File(
        memory,
        "w",
        libver=("earliest", "v110"),  # every HDF5 tool of the last ten years reads it
        alignment_threshold=min(num_bytes, ALIGNED_BYTES) or ALIGNED_BYTES,
        alignment_interval=PAGE_BYTES,
    ) as file:
        # Write what is known; no clock in the file: same images, same bytes.
        file.attrs.update({"format": FORMAT, "num_images": len(rows), **attributes, "complete": 1})
        quarantined = json.dumps([asdict(reject) for reject in rejects])
        for name, column in (*_columns(rows, crc32).items(), ("quarantined", quarantined)):
            file.create_dataset(name, data=column, track_times=False)
        # Reserve the place of the pixels.
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_layout(h5py.h5d.CONTIGUOUS)
        create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # else there is no offset before a write
        create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        shape = (len(rows), size_px, size_px)
        images = file.create_dataset("images", shape, np.uint8, dcpl=create, track_times=False)
        offset = images.id.get_offset() or 0  # no images, no offset
    return memory.getvalue(), offset


def _columns(rows: list[ImageRecord], crc32: list[int]) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {"crc32": np.asarray(crc32, np.uint32)}
    for field in fields(ImageRecord):
        values = [getattr(row, field.name) for row in rows]
        if field.type is str:
            texts = [value.encode() for value in values]
            dtype = h5py.string_dtype("utf-8", max(map(len, texts), default=0) or 1)
            columns[field.name] = np.asarray(texts, dtype)
        else:
            columns[field.name] = np.asarray(values, np.int64)
    columns["labels"] = columns.pop("label").astype(np.uint8)
    return columns


def damaged_images(path: Path, offset: int, size_px: int, crc32: npt.NDArray[np.uint32]) -> list[int]:
    """Indices of the images whose pixels do not match their CRC."""
    with path.open("rb") as file:
        file.seek(offset)
        return [i for i, expected in enumerate(crc32) if zlib.crc32(file.read(size_px**2)) != expected]


def describe_shard(path: Path) -> ShardInfo:
    """What the manifest should say about a shard file, read from it; DataError if it is not complete."""
    with _opened(path) as file:
        num_classes = len(json.loads(file.attrs["class_names"]))
        return ShardInfo(
            name=path.name,
            split=str(file.attrs["split"]),
            num_images=len(file["images"]),
            num_bytes=path.stat().st_size,
            data_offset=file["images"].id.get_offset() or 0,
            sha256=sha256_file(path),
            class_counts=tuple(np.bincount(file["labels"][:], minlength=num_classes).tolist()),
            image_size_px=file["images"].shape[1],
        )


def is_complete(path: Path, plan_sha256: str) -> bool:
    """Whether `path` is a whole shard of the plan with this digest."""
    with suppress(DataError), _opened(path) as file:
        return bool(file.attrs["plan_sha256"] == plan_sha256)
    return False


def write_manifest(
    folder: Path, recipe: Recipe, class_names: tuple[str, ...], names: Iterable[str]
) -> Manifest:
    """Write manifest.json over the shards `names`, in this order, and return it."""
    shards = [describe_shard(folder / name) for name in names]
    splits = {split: tuple(shard for shard in shards if shard.split == split) for split in SPLITS}
    splits = {split: members for split, members in splits.items() if members}
    size_px = int(recipe["size_px"])
    manifest = Manifest(
        fingerprint="", image_size_px=size_px, class_names=class_names, recipe=recipe, splits=splits
    )
    manifest = msgspec.structs.replace(manifest, fingerprint=manifest.digest())
    write_record(folder / MANIFEST_FILE, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set; DataError if it or a shard is missing or short, DamagedFile if edited."""
    path = folder / MANIFEST_FILE
    manifest = read_record(path, Manifest)
    if manifest is None:
        manifests = [*folder.glob(f"*/{MANIFEST_FILE}"), *folder.parent.glob(f"*/{MANIFEST_FILE}")]
        near = ", ".join(sorted({str(manifest.parent) for manifest in manifests})[:5])
        hint = f"packed images are in {near}" if near else "python jobs/pack.py SOURCE OUT packs some"
        raise DataError(f"no packed images at {folder}: {path.name} is missing", hint)
    if manifest.format != FORMAT:
        raise DamagedFile(f"{path} has format {manifest.format}; this version reads {FORMAT}", REPACK_HINT)
    # names become paths: a manifest from elsewhere must not point outside its folder
    names_are_ours = all(SHARD_NAME.fullmatch(shard.name) for shard in manifest.shards())
    if manifest.fingerprint != manifest.digest() or not names_are_ours:
        raise DamagedFile(f"{path} was damaged or edited: its fingerprint does not fit", REPACK_HINT)
    for shard in manifest.shards():
        _check_length(folder, shard)
    return manifest


def _check_length(folder: Path, shard: ShardInfo) -> None:
    path = folder / shard.name
    num_bytes = path.stat().st_size if path.is_file() else 0
    if num_bytes != shard.num_bytes:
        raise DataError(f"{path} has {num_bytes} bytes, the manifest says {shard.num_bytes}", REPACK_HINT)


def verify(folder: Path) -> int:
    """Compare every byte with its digests; the images checked, or a DataError that names what has changed."""
    shards = read_manifest(folder).shards()
    damaged = [shard for shard in shards if sha256_file(folder / shard.name) != shard.sha256]
    if damaged:
        damage = "; ".join(describe_damage(folder, shard) for shard in damaged)
        raise DataError(f"{folder} is damaged: {damage}", REPACK_HINT)
    return sum(shard.num_images for shard in shards)


def describe_damage(folder: Path, shard: ShardInfo) -> str:
    """Which images of a shard have changed, or that the change lies outside the image data."""
    try:
        crc32 = read_crc32(folder, shard)
        images = damaged_images(folder / shard.name, shard.data_offset, shard.image_size_px, crc32)
    except (DataError, OSError):
        return f"{shard.name} cannot be read"
    damage = f"in {len(images)} images {images[:5]}" if images else "outside the image data"
    return f"{shard.name} {damage}"


def map_images(folder: Path, shard: ShardInfo) -> npt.NDArray[np.uint8]:
    """The shard's images as a read-only memory map, uint8 [n, H, W], 0 = black, 255 = white; or DataError."""
    shape = (shard.num_images, shard.image_size_px, shard.image_size_px)
    _check_length(folder, shard)  # a short file, mapped, would end the process with SIGBUS
    if shard.num_images == 0:
        return np.zeros(shape, np.uint8)  # an empty map is not allowed
    if shard.data_offset + math.prod(shape) > shard.num_bytes:
        raise DataError(f"{folder / MANIFEST_FILE}: {shard.name} cannot hold its images", REPACK_HINT)
    return np.memmap(folder / shard.name, np.uint8, "r", shard.data_offset, shape)


def read_labels(folder: Path, shard: ShardInfo) -> npt.NDArray[np.uint8]:
    """Index into the class names for each image, uint8 [n]."""
    return _column(folder / shard.name, "labels")


def read_crc32(folder: Path, shard: ShardInfo) -> npt.NDArray[np.uint32]:
    """zlib.crc32 of each image's pixels, uint32 [n]."""
    return _column(folder / shard.name, "crc32")


def read_keys(folder: Path, shard: ShardInfo) -> list[str]:
    """Where each image came from: its path in the source, printable (see sources.escape)."""
    return [text.decode() for text in _column(folder / shard.name, "key")]


def read_records(path: Path) -> list[ImageRecord]:
    """Everything a shard file knows about its images but the pixels."""
    columns = []
    for field in fields(ImageRecord):
        values = _column(path, "labels" if field.name == "label" else field.name).tolist()
        columns.append([value.decode() for value in values] if field.type is str else values)
    return [ImageRecord(*row) for row in zip(*columns, strict=True)]


def read_rejects(path: Path) -> list[Reject]:
    """The files that belonged in this shard and could not be used."""
    with _opened(path) as file:
        return [Reject(**values) for values in json.loads(file["quarantined"].asstr()[()])]


def _column(path: Path, name: str) -> npt.NDArray[Any]:
    with _opened(path) as file:
        return np.asarray(file[name])


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A complete shard opened for reading; anything wrong with the file is a DataError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("complete") != 1 or file.attrs.get("format") != FORMAT:
                raise DataError(f"{path} is not a complete shard of format {FORMAT}", REPACK_HINT)
            yield file
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # what HDF5 says of broken files
        raise DataError(f"{path} is not a readable shard: {error}", REPACK_HINT) from error
