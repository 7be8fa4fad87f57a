"""Reads shards, and takes nothing from a file that `write_shard` would not have put there.

A shard may be damaged, or forged by whoever packed it: a column that is a link, lies in other files, is
compressed or as long as the author liked. So type, shape and place of everything are checked before the first
byte of it is read, and whatever HDF5 stumbles over is a DataError. Texts of variable length are not read by
HDF5: in a damaged heap of them it loops for ever, or makes room for as many bytes as one claims to have.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import asdict

from data_prep.errors import DataError
from data_prep.files import sha256_file
from data_prep.shards import FORMAT, ImageRecord, Reject, ShardInfo, damaged_images

REPACK_HINT = "delete it, then pack the images again: python jobs/pack.py SOURCE OUT"

# What h5py, NumPy and our own checks say of broken files.
BROKEN = (
    *(OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError),
    *(struct.error, msgspec.MsgspecError),
)
MAX_CLASSES = 256  # labels are bytes
COLUMN_TYPES = {"labels": np.uint8, "crc32": np.uint32}  # of numbers; the others are int64


@dataclass(frozen=True, eq=False)
class Shard:
    """The images of a shard and what training and scoring use of the rest, checked against the manifest."""

    images: npt.NDArray[np.uint8]
    """Read-only memory map [n, H, W], 0 = black, 255 = white."""
    labels: npt.NDArray[np.uint8]
    """Index into the class names, [n]."""
    crc32: npt.NDArray[np.uint32]
    """zlib.crc32 of each image's pixels, [n]."""
    keys: list[str]
    """Where each image came from: its path in the source, printable (see sources.escape)."""


def open_shard(folder: Path, info: ShardInfo) -> Shard:
    """A shard of a packed folder; DataError if it is not a whole one or not as `info` describes it."""
    path = folder / info.name
    with _checked(folder, info) as file:
        labels, crc32, keys = file.numbers("labels"), file.numbers("crc32"), file.texts("key")
    if not "".join(keys).isprintable():
        raise DataError(f"{path} is not a readable shard: a key is not printable", REPACK_HINT)
    if info.num_images == 0:  # an empty map is not allowed
        return Shard(np.zeros(info.image_shape, np.uint8), labels, crc32, keys)
    images = np.memmap(path, np.uint8, "r", info.data_offset, info.image_shape)
    return Shard(images, labels, crc32, keys)


def read_groups(folder: Path, info: ShardInfo) -> list[str]:
    """The patient of each image of a shard, empty where nobody knows; DataError as `open_shard`."""
    with _checked(folder, info) as file:
        return file.texts("group")


def check_shard(folder: Path, info: ShardInfo) -> None:
    """Raise DataError if a shard is not whole, or not as `info` describes it; its digest is not computed."""
    with _checked(folder, info):
        pass


def check_length(folder: Path, info: ShardInfo) -> None:
    """Raise DataError if a shard is missing or short; mapped, a short one would end the process by SIGBUS."""
    path = folder / info.name
    num_bytes = path.stat().st_size if path.is_file() else 0
    if num_bytes != info.num_bytes:
        raise DataError(f"{path} has {num_bytes} bytes, the manifest says {info.num_bytes}", REPACK_HINT)


def describe_shard(path: Path, num_classes: int) -> ShardInfo:
    """What the manifest should say about a shard; DataError if it is not whole or an image damaged."""
    with _opened(path) as file:
        info = file.describe(sha256_file(path), num_classes)
        crc32 = file.numbers("crc32")
    if damaged := damaged_images(path, info.data_offset, info.image_size_px, crc32):
        raise DataError(f"{path} is damaged in {len(damaged)} images {damaged[:5]}", REPACK_HINT)
    return info


def is_complete(path: Path, plan_sha256: str) -> bool:
    """Whether `path` is a whole shard of the plan with this digest."""
    with suppress(DataError), _opened(path) as file:
        header_bytes = file.describe("", MAX_CLASSES).data_offset or file.num_bytes
        with path.open("rb") as content:  # the digest is a text of variable length
            return plan_sha256.encode() in content.read(header_bytes)
    return False


def read_records(path: Path) -> list[ImageRecord]:
    """Everything a shard file knows about its images but the pixels."""
    with _opened(path) as file:
        columns = []
        for field in fields(ImageRecord):
            name = "labels" if field.name == "label" else field.name
            columns.append(file.texts(name) if field.type is str else file.numbers(name).tolist())
    return [ImageRecord(*row) for row in zip(*columns, strict=True)]


def read_rejects(path: Path) -> list[Reject]:
    """The files that belonged in this shard and could not be used."""
    with _opened(path) as file:
        return msgspec.json.decode(file.text("quarantined"), type=list[Reject])


@contextmanager
def _checked(folder: Path, info: ShardInfo) -> Iterator["_ShardFile"]:
    """A shard file, open, that is as `info` describes it."""
    check_length(folder, info)
    with _opened(folder / info.name) as file:
        found, said = file.describe(info.sha256, len(info.class_counts)), asdict(info)
        for name, value in asdict(found).items():
            if value != said[name]:
                raise ValueError(f"{name} is {value}, the manifest says {said[name]}")
        yield file


@contextmanager
def _opened(path: Path) -> Iterator["_ShardFile"]:
    """A complete shard, open; anything wrong with the file is a DataError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            shard = _ShardFile(path, file)
            if shard.attribute("complete") != 1 or shard.attribute("format") != FORMAT:
                raise ValueError(f"not a complete one of format {FORMAT}")
            yield shard
    except BROKEN as error:
        raise DataError(f"{path} is not a readable shard: {error}", REPACK_HINT) from error


class _ShardFile:
    """An open shard; raises one of BROKEN where it is not as `write_shard` makes them."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        self.num_bytes = path.stat().st_size

    def describe(self, sha256: str, num_classes: int) -> ShardInfo:
        """What the file is, by its images and labels, which must agree."""
        images = self.in_place("images", 3)
        num_images, height, width = images.shape
        if images.dtype != np.uint8 or height != width or num_images != self.attribute("num_images"):
            raise ValueError("its images are not as many and as square as it says")
        class_counts = np.bincount(self.numbers("labels"), minlength=num_classes).tolist()
        if len(class_counts) > num_classes:
            raise ValueError("a label is beyond the class names")
        counts = num_images, self.num_bytes, images.id.get_offset() or 0  # no images, no offset
        split = self.path.name.partition("-")[0]
        return ShardInfo(self.path.name, split, *counts, sha256, tuple(class_counts), width)

    def attribute(self, name: str) -> int:
        """One number that the file says about itself."""
        found = h5py.h5a.open(self.file.id, name.encode())
        if found.shape != () or found.dtype.kind not in "iu":
            raise ValueError(f"{name} is not one number")
        return int(self.file.attrs[name])

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """A column of numbers, [n]; those about source files are at least 1."""
        column = self.in_place(name, 1)
        if column.dtype != COLUMN_TYPES.get(name, np.int64):
            raise ValueError(f"{name} holds {column.dtype}")
        values: npt.NDArray[Any] = column[()]
        if name.startswith("source_") and values.min(initial=1) < 1:
            raise ValueError(f"{name} holds numbers below 1")
        return values

    def texts(self, name: str) -> list[str]:
        """A column of UTF-8 texts, [n]."""
        column = self.in_place(name, 1)
        if column.dtype.kind != "S":
            raise ValueError(f"{name} holds {column.dtype}")
        return [text.decode() for text in column[()].tolist()]

    def text(self, name: str) -> bytes:
        """One text of any length, from HDF5's heap of texts."""
        place = self.in_place(name, 0).id.get_offset() or 0
        with self.path.open("rb") as file:
            file.seek(place)
            num_bytes, address, wanted = struct.unpack("<IQI", file.read(16))
            file.seek(min(address, self.num_bytes))
            signature, heap_bytes = struct.unpack("<4s4xQ", file.read(16))
            heap = file.read(min(heap_bytes, self.num_bytes))
        # the heap's texts one after the other, each with its number, its length and zeros up to 8 bytes
        place, number = 0, -1
        while signature == b"GCOL" and number not in (0, wanted):
            number, stored = struct.unpack_from("<H6xQ", heap, place)
            text, place = heap[place + 16 : place + 16 + stored], place + 16 + (stored + 7) // 8 * 8
        if number != wanted or len(text) != num_bytes:
            raise ValueError(f"{name} is not in the file")
        return text

    def in_place(self, name: str, num_axes: int) -> h5py.Dataset:
        """A data set of the file itself, as long as `images` and in one piece, so that reading takes no more
        memory than the file has bytes."""
        if not isinstance(self.file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is missing, or a link")
        found = self.file[name]
        if not isinstance(found, h5py.Dataset) or found.shape is None or found.ndim != num_axes:
            raise ValueError(f"{name} is not a table with {num_axes} axes")
        creation, stored = found.id.get_create_plist(), found.id.get_storage_size()
        if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count():
            raise ValueError(f"{name} does not lie in the file in one piece")
        if (num_axes and stored != found.nbytes) or stored > self.num_bytes:
            raise ValueError(f"{name} has not as many bytes as values")
        if num_axes == 1 and len(found) != self.attribute("num_images"):
            raise ValueError(f"{name} has {len(found)} values, not one for each image")
        return found
