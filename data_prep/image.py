"""One image file to one square of grey pixels, by a recipe that is stored with the result.

Fast and faithful on JPEG: the decoder is asked for its grey channel alone, and `reducing_gap=2` shrinks in
two steps, which stays above 50 dB of a full decode with bicubic resize.
"""

import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

Aspect = Literal["stretch", "pad", "crop"]
"""stretch fills the square and changes the proportions (as published); pad adds black borders; crop cuts."""

# Suffixes that a file of each format may have.
SUFFIXES = {
    "JPEG": (".jpeg", ".jpg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
# A radiograph has a few megapixels; a small file that claims more is a decompression bomb.
MAX_PIXELS = 100_000_000
MIN_SIDE_PX = 16
MAX_FILE_BYTES = 1 << 30
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
    """This file cannot be packed; the message says why, for the quarantine list."""


@dataclass(frozen=True)
class Picture:
    """Pixels and what they were made from."""

    pixels: npt.NDArray[np.uint8]
    """[size_px, size_px], 0 = black."""
    width_px: int
    height_px: int
    mode: str


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; BadImageError if it is not one, is empty or huge, or cannot be read."""
    try:
        status = path.stat()  # first, because opening a pipe would wait for ever
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImageError(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise BadImageError("is empty")
    return content


def make_picture(content: bytes, suffix: str, size_px: int, aspect: Aspect) -> Picture:
    """An image file as a square; BadImageError if it is damaged, misnamed, or would take guesswork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd EXIF; we decide ourselves
        try:
            image = Image.open(io.BytesIO(content), formats=tuple(SUFFIXES))
            _check(image, suffix)
            size, mode = image.size, image.mode
            image.draft("L", size)  # JPEG only: colour is never decoded
            grey = image if image.mode == "L" else image.convert("L")  # convert would copy
            return Picture(resize(grey, size_px, aspect), *size, mode)
        except UnidentifiedImageError as error:
            raise BadImageError(f"is not an image ({', '.join(SUFFIXES)})") from error
        except Image.DecompressionBombError as error:
            raise BadImageError(f"has more than {MAX_PIXELS:,} pixels") from error
        except BadImageError:
            raise
        except Exception as error:  # Pillow raises many kinds on broken files; each means this file only
            raise BadImageError(f"is truncated or damaged: {error}") from error


def _check(image: Image.Image, suffix: str) -> None:
    """Refuse what the recipe does not cover, before a pixel is decoded."""
    if suffix.lower() not in SUFFIXES.get(image.format or "", ()):
        raise BadImageError(f"is {image.format} inside, but is named {suffix or 'without a suffix'}")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"has {width * height:,} pixels; the limit is {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE_PX:
        raise BadImageError(f"is {width}x{height} px; each side needs at least {MIN_SIDE_PX}")
    if image.mode not in ("L", "RGB", "YCbCr"):
        unusual = f"has the unusual mode {image.mode}; convert it to grey"
        raise BadImageError(MODE_ADVICE.get(image.mode, unusual))
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        # 16 bits a colour, of which Pillow would silently drop 8
        raise BadImageError(MODE_ADVICE["I;16"])
    if getattr(image, "n_frames", 1) > 1:
        raise BadImageError("holds several pictures; save the one you mean by itself")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in (0, 1):  # 0: not said
        how = f"EXIF orientation {orientation}"
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


def make_dicom_picture(content: bytes, size_px: int, aspect: Aspect) -> Picture:
    """A DICOM radiograph as a viewer shows it, inverted if MONOCHROME1; else BadImageError."""
    import pydicom

    try:
        data = pydicom.dcmread(io.BytesIO(content))
        photometric = str(data.PhotometricInterpretation)
        if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(data.get("NumberOfFrames") or 1) != 1:
            raise BadImageError(f"is not one grey frame ({photometric})")
        width, height = int(data.Columns), int(data.Rows)
        if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE_PX:
            raise BadImageError(f"is {width}x{height} px; allowed: {MIN_SIDE_PX} px to {MAX_PIXELS:,} pixels")
        if data.get("BurnedInAnnotation") == "YES":
            raise BadImageError("has text in its pixels that may name the patient (BurnedInAnnotation)")
        grey = _unit_greys(data)
    except BadImageError:
        raise
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise BadImageError(f"is not a readable DICOM image: {' '.join(str(error).split())}") from error
    if photometric == "MONOCHROME1":  # 0 means white
        grey = 1 - grey
    image = Image.fromarray((255 * grey).round().astype(np.uint8))
    return Picture(resize(image, size_px, aspect), width, height, f"{photometric};{data.BitsStored}")


def _unit_greys(data: Any) -> npt.NDArray[np.floating[Any]]:
    """As shown, in [0, 1] (DICOM PS3.3 C.11.2.1.2 and 3): by VOI LUT, else first window, else full range."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(data.pixel_array, data)
    if data.get("VOILUTSequence"):
        white = np.float32(2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1)
        entries = np.rint(values).astype(np.int32)
        return np.asarray(apply_voi_lut(entries, data, prefer_lut=True).astype(np.float32) / white)
    values = np.asarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    if data.get("WindowWidth"):
        center, width = (float(np.ravel(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        function = data.get("VOILUTFunction") or "LINEAR"
        if function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - center) / width))
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        low, high = center - width / 2, center + width / 2
    if high <= low:
        raise BadImageError("has one grey only, or a window of no width")
    return np.clip((values - low) / (high - low), 0, 1)
