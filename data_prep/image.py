"""One image file to one square of grey pixels, by a recipe that is stored with the result.

Fast and faithful on JPEG: the decoder is asked for its grey channel alone, and `reducing_gap=2` shrinks in
two steps, which stays above 50 dB of a full decode with bicubic resize.
"""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from data_prep import limits

Aspect = Literal["stretch", "pad", "crop"]
"""stretch fills the square and changes the proportions (as published); pad adds black borders; crop cuts."""

# Suffixes that a file of each format may have.
SUFFIXES = {
    "JPEG": (".jpeg", ".jpg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
REDUCING_GAP = 2.0

MODE_ADVICE = {
    **dict.fromkeys(("P", "PA"), "has a palette; convert it to grey"),
    **dict.fromkeys(("RGBA", "LA"), "has transparency; flatten it"),
    "CMYK": "has print colours (CMYK); convert it to grey",
    "1": "is black and white without greys",
    **dict.fromkeys(("I;16", "I;16B"), "has 16 bits; scale it to 8, or give the DICOM files"),
    **dict.fromkeys(("I", "F"), "has more than 8 bits; scale it to 8, or give the DICOM files"),
}


class BadImageError(Exception):
    """This file cannot be packed; the message says why, for the quarantine list, and quotes nothing of it."""


@dataclass(frozen=True)
class Picture:
    """Pixels and what they were made from."""

    pixels: npt.NDArray[np.uint8]
    """[size_px, size_px], 0 = black."""
    width_px: int
    height_px: int
    mode: str


@contextmanager
def stage(reason: str, when: str) -> Iterator[None]:
    """Turn whatever a library raises here into a BadImageError in our words: its own may quote the file."""
    try:
        yield
    except BadImageError:
        raise
    except MemoryError as error:
        raise BadImageError(limits.TOO_MUCH_MEMORY) from error
    except Exception as error:  # libraries raise many kinds on broken files; each means this file only
        kind = type(error)  # of struct and zlib it is called `error`
        name = kind.__name__ if kind.__name__ != "error" else f"{kind.__module__}.error"
        raise BadImageError(f"{reason} ({name} {when})") from error


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; BadImageError if it is not one, is empty or huge, or cannot be read."""
    try:
        status = path.stat()  # first, because opening a pipe would wait for ever
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("is not a regular file")
        if status.st_size > limits.MAX_FILE_BYTES:
            raise BadImageError(f"is larger than {limits.MAX_FILE_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise BadImageError("is empty")
    return content


def make_picture(content: bytes, suffix: str, size_px: int, aspect: Aspect) -> Picture:
    """An image file as a square; BadImageError if it is damaged, misnamed, or would take guesswork."""
    with warnings.catch_warnings(), stage("is truncated or damaged", "while it is decoded"):
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd EXIF; we decide ourselves
        try:
            image = Image.open(io.BytesIO(content), formats=tuple(SUFFIXES))
            _check(image, suffix)
        except UnidentifiedImageError as error:
            raise BadImageError(f"is not an image ({', '.join(SUFFIXES)})") from error
        except Image.DecompressionBombError as error:
            raise BadImageError(f"has more than {limits.MAX_PIXELS:,} pixels") from error
        size, mode = image.size, image.mode
        limits.allow_pixels(size[0] * size[1], limits.PICTURE_S_PER_PX)
        image.draft("L", size)  # JPEG only: colour is never decoded
        grey = image if image.mode == "L" else image.convert("L")  # convert would copy
        return Picture(resize(grey, size_px, aspect), *size, mode)


def _check(image: Image.Image, suffix: str) -> None:
    """Refuse what the recipe does not cover, before a pixel is decoded."""
    if suffix.lower() not in SUFFIXES.get(image.format or "", ()):
        named = suffix if suffix.lower() in chain.from_iterable(SUFFIXES.values()) else "otherwise"
        raise BadImageError(f"is {image.format} inside, but is named {named}")
    width, height = image.size
    if width * height > limits.MAX_PIXELS:
        raise BadImageError(f"has {width * height:,} pixels; the limit is {limits.MAX_PIXELS:,}")
    if min(width, height) < limits.MIN_SIDE_PX:
        raise BadImageError(f"is {width}x{height} px; each side needs at least {limits.MIN_SIDE_PX}")
    if image.mode not in ("L", "RGB", "YCbCr"):
        unusual = f"has the unusual mode {image.mode}; convert it to grey"
        raise BadImageError(MODE_ADVICE.get(image.mode, unusual))
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        # 16 bits a colour, of which Pillow would silently drop 8
        raise BadImageError(MODE_ADVICE["I;16"])
    with suppress(EOFError):
        image.seek(1)  # counting them all would take hours in a crafted file
        raise BadImageError("holds several pictures; save the one you mean by itself")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in (0, 1):  # 0: not said
        how = f"EXIF orientation {orientation if orientation in range(2, 9) else 'unknown'}"
        raise BadImageError(f"is stored rotated or mirrored ({how}); turn it upright")


def resize(image: Image.Image, size_px: int, aspect: Aspect) -> npt.NDArray[np.uint8]:
    """A grey image as uint8 [size_px, size_px]."""
    width, height = image.size
    if aspect == "pad":
        scale = size_px / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        square = Image.new("L", (size_px, size_px))
        small = image.resize(inner, Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
        square.paste(small, ((size_px - inner[0]) // 2, (size_px - inner[1]) // 2))
        return np.asarray(square)
    box = None
    if aspect == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box, REDUCING_GAP))
