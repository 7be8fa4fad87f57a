"""Copies the images of a batch together from the maps of several shards.

Fast where the maps can stand side by side in this process's addresses, as one array: a single call gathers a
batch, outside Python's lock. Copied one by one, every image takes the lock, and the threads that read ahead
wait for each other. Both ways give the same bytes.
"""

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Sequence
from typing import Protocol
from weakref import finalize

import numpy as np

# <sys/mman.h> of Linux; Python's mmap cannot be told where to map
PROT_NONE, MAP_FIXED, MAP_NORESERVE = 0, 0x10, 0x4000


class Gather(Protocol):
    """Reads images by their number."""

    how: str
    """For a log line."""

    def copy_into(self, buffer: np.ndarray, indices: np.ndarray) -> None:
        """Copy the images at `indices`, int64 [n] and in range, into `buffer`, uint8 [n, H, W]."""


def gather_from(maps: Sequence[np.memmap]) -> Gather:
    """The fastest that this machine has for maps uint8 [n, H, W], n >= 1, of files."""
    if not sys.platform.startswith("linux"):
        return OneByOne(maps, "images copied one by one: this is not Linux")
    if any(shard.offset % mmap.PAGESIZE for shard in maps):
        reason = f"they lie on no border of this machine's pages of {mmap.PAGESIZE} bytes"
        return OneByOne(maps, f"images copied one by one: {reason}")
    try:
        return SideBySide(maps) if maps else OneByOne(maps)
    except OSError as error:  # a limit on the addresses of a process
        return OneByOne(maps, f"images copied one by one: cannot map them side by side: {error}")


class OneByOne:
    """A copy for each image."""

    def __init__(self, maps: Sequence[np.memmap], how: str = "") -> None:
        # plain arrays over the maps: indexing np.memmap itself costs more than copying an image
        self.shards, self.how = [np.asarray(shard) for shard in maps], how
        self.first = np.cumsum([0, *map(len, maps)])[:-1]

    def copy_into(self, buffer: np.ndarray, indices: np.ndarray) -> None:
        """See Gather."""
        shard_of = np.searchsorted(self.first, indices, side="right") - 1
        # plain integers: indexing with NumPy's costs as much as a tenth of an image
        places = zip(shard_of.tolist(), (indices - self.first[shard_of]).tolist(), strict=True)
        for row, (shard, index) in zip(buffer, places, strict=True):
            row[:] = self.shards[shard][index]


class SideBySide:
    """All shards as one array; between two of them may be rows that belong to no file and are never read."""

    how = "a batch of images is one gather"

    def __init__(self, maps: Sequence[np.memmap]) -> None:
        image_shape, image_bytes = maps[0].shape[1:], maps[0][0].nbytes
        # a map begins on a page border, and of the rows only one in so many does
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, image_bytes)
        starts = np.cumsum([0, *(math.ceil(len(shard) / step) * step for shard in maps)])
        memory = _Addresses(int(starts[-1]) * image_bytes)
        for shard, row in zip(maps, starts.tolist(), strict=False):
            memory.map_file(row * image_bytes, shard)
        self.images = np.ctypeslib.as_array(memory.block).reshape(-1, *image_shape)
        self.images.flags.writeable = False
        self.rows = np.concatenate(
            [row + np.arange(len(shard)) for shard, row in zip(maps, starts, strict=False)]
        )

    def copy_into(self, buffer: np.ndarray, indices: np.ndarray) -> None:
        """See Gather."""
        # `clip`, for with `raise` NumPy fills a copy of the buffer first
        np.take(self.images, self.rows[indices], axis=0, out=buffer, mode="clip")


class _Addresses:
    """Addresses of this process that nothing else uses, given back once nothing refers to `block`."""

    def __init__(self, num_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.first = _map(None, num_bytes, PROT_NONE, flags, -1, 0)
        self.block = (ctypes.c_uint8 * num_bytes).from_address(self.first)
        finalize(self.block, _library().munmap, ctypes.c_void_p(self.first), ctypes.c_size_t(num_bytes))

    def map_file(self, place: int, shard: np.memmap) -> None:
        """Map a shard's images `place` bytes from the first address."""
        assert shard.filename is not None
        file = os.open(shard.filename, os.O_RDONLY)
        try:
            flags = mmap.MAP_SHARED | MAP_FIXED
            _map(self.first + place, shard.nbytes, mmap.PROT_READ, flags, file, shard.offset)
        finally:
            os.close(file)  # the map stays


def _map(address: int | None, num_bytes: int, protection: int, flags: int, file: int, offset: int) -> int:
    """mmap(2); OSError where it fails."""
    place, length = ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)
    found = _library().mmap(place, length, protection, flags, file, ctypes.c_longlong(offset))
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    return library
