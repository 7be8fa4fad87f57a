"""The shard format: HDF5 files that are also plain arrays of pixels, and how they are written.

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
and attributes that say which recipe and plan made it; `complete` = 1 marks a whole file. Every column is as
long as `images`, contiguous, unfiltered and in the file itself; `shard_reader` takes no other.

Beside the shards a packed folder holds
    manifest.json      its shards and the digests of all that is here (see manifest.py); written last
    audit.json         counts, leaks, duplicates; digest in the manifest
    quarantine.jsonl   files that could not be used, by name; digest in the manifest
    plan.json          which file goes into which shard; digest in the manifest
    .patient-salt      of DICOM sources; digest in the manifest (of 32 random bytes, so it tells nothing)
    .packing-*         empty lock files
    .*.part            left by a killed writer, never read, removed by the next
"""

import io
import json
import math
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt

from data_prep.errors import DataError
from data_prep.files import replacing
from data_prep.json_records import Record

FORMAT = 1
SPLITS = ("train", "val", "test")

PAGE_BYTES = 4096
# Only the pixels are as long as this, so only they are moved to a page border.
ALIGNED_BYTES = 1 << 16
SHARD_NAME = re.compile(r"^[A-Za-z0-9._-]+\.h5")

Recipe = dict[str, int | float | str]  # how pixels are made
Attributes = Mapping[str, int | str]  # what a shard says about itself
Count = Annotated[int, msgspec.Meta(ge=0)]
ShardName = Annotated[str, msgspec.Meta(pattern=SHARD_NAME.pattern + r"\Z")]
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

    name: ShardName
    split: str
    num_images: Count
    num_bytes: Count
    data_offset: Count
    sha256: str
    class_counts: tuple[Count, ...]
    image_size_px: Side

    def __post_init__(self) -> None:
        """Raise ValueError if the numbers contradict each other."""
        if sum(self.class_counts) != self.num_images:
            raise ValueError(f"{self.name} has other counts by class than in all")
        if self.data_offset + math.prod(self.image_shape) > self.num_bytes:
            raise ValueError(f"{self.name} cannot hold its images")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[n, H, W] of its images."""
        return self.num_images, self.image_size_px, self.image_size_px


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
