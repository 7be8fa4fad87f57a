"""DICOM files: the patient while they are listed, the picture when they are packed, and nothing else.

What pydicom says of a file may quote it, so it says nothing here: neither warnings nor its log, and of its
errors only the kind is told. Nothing is inflated or read beyond what a file may cost.
"""

import io
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep import limits
from data_prep.errors import DataError
from data_prep.image import Aspect, BadImageError, Picture, resize, stage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

SUFFIXES = (".dcm", ".dicom")
MAGIC, MAGIC_AT = b"DICM", 128
# The patient stands near the beginning; what comes before may hold an icon.
HEADER_BYTES = 1 << 20
PATIENT_ID = 0x0010_0020
NEEDED = ("PhotometricInterpretation", "BitsStored", "Rows", "Columns", "PixelData")
# JPEG 2000 and RLE.
SLOW_SYNTAXES = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.5")
# The beginning of a file whose data are plain little-endian ones, as inflated ones are.
PLAIN_HEAD = bytes(MAGIC_AT) + MAGIC + b"\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
BLOCK_PIXELS = 1 << 20

StopWhen = Callable[["BaseTag", str | None, int], bool]
Stored = npt.NDArray[Any]
Greys = npt.NDArray[np.floating[Any]]


def import_pydicom() -> None:
    """Raise DataError, with what to install, unless DICOM files can be read."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        install = "in the repository: pip install -e '.[dicom]'"
        raise DataError("DICOM files need the `dicom` extra", install) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence for what a library may quote of a file."""
    log = logging.getLogger("pydicom")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


def is_dicom(path: Path) -> bool:
    """By what it begins with."""
    with suppress(OSError):
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    return False


def patient_of(path: Path) -> str:
    """The PatientID in a file's first megabyte; nothing if there is none.

    Whatever is wrong with the file, the packer will say so and quarantine it.
    """
    with suppress(Exception), quiet():
        if path.is_file():
            with path.open("rb") as file:
                content = file.read(HEADER_BYTES)
            data = read_dataset(content, HEADER_BYTES, lambda tag, *_: tag > PATIENT_ID)
            return str(data.get("PatientID") or "")
    return ""


def read_dataset(content: bytes, max_bytes: int, stop_when: StopWhen | None = None) -> "Dataset":
    """The elements of a file, or those before `stop_when`; of a deflated one, what `max_bytes` of it hold.

    BadImageError if a deflated file holds more, and all is wanted; what pydicom raises if it is broken.
    """
    from pydicom.filereader import _read_file_meta_info, read_partial, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = io.BytesIO(content)
    read_preamble(file, force=False)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content = PLAIN_HEAD + inflater.decompress(content[file.tell() :], max_bytes)
        if inflater.unconsumed_tail and stop_when is None:
            raise BadImageError(f"inflates to more than {max_bytes >> 20} MiB")
    return read_partial(io.BytesIO(content), stop_when)


def make_dicom_picture(content: bytes, size_px: int, aspect: Aspect) -> Picture:
    """A DICOM radiograph as a viewer shows it, inverted if MONOCHROME1; else BadImageError."""
    with quiet(), stage("is not a readable DICOM image", "while its header is read"):
        data = read_dataset(content, limits.MAX_FILE_BYTES)
        missing = [name for name in NEEDED if name not in data]
        if missing:
            raise BadImageError(f"is not a readable DICOM image: it has no {missing[0]}")
        photometric, bits = str(data.PhotometricInterpretation), int(data.BitsStored)
        if photometric not in ("MONOCHROME1", "MONOCHROME2") or not 1 <= bits <= 32:
            raise BadImageError("is not grey, by its PhotometricInterpretation and BitsStored")
        if int(data.get("NumberOfFrames") or 1) != 1:
            raise BadImageError("holds several frames; save the one you mean by itself")
        width, height = int(data.Columns), int(data.Rows)
        if width * height > limits.MAX_PIXELS or min(width, height) < limits.MIN_SIDE_PX:
            allowed = f"{limits.MIN_SIDE_PX} px to {limits.MAX_PIXELS:,} pixels"
            raise BadImageError(f"is {width}x{height} px; allowed: {allowed}")
        if data.get("BurnedInAnnotation") == "YES":
            raise BadImageError("has text in its pixels that may name the patient (BurnedInAnnotation)")
        is_slow = str(data.file_meta.get("TransferSyntaxUID")).startswith(SLOW_SYNTAXES)
    with quiet(), stage("is not a readable DICOM image", "while its pixels are decoded"):
        limits.allow_pixels(width * height, limits.DICOM_S_PER_PX, len(content) if is_slow else 0)
        grey = shown_greys(data, is_inverted=photometric == "MONOCHROME1")
        return Picture(resize(Image.fromarray(grey), size_px, aspect), width, height, f"{photometric};{bits}")


def shown_greys(data: "Dataset", is_inverted: bool) -> npt.NDArray[np.uint8]:
    """Pixels as shown, uint8 [rows, columns]; a few rows at a time, as they are floats in between."""
    stored = data.pixel_array
    if stored.ndim != 2:
        raise BadImageError("is not grey: its pixels have several values")
    step = max(1, BLOCK_PIXELS // stored.shape[1])
    blocks = [slice(start, start + step) for start in range(0, len(stored), step)]
    to_unit = unit_scale(data, [stored[block] for block in blocks])
    shown = np.empty(stored.shape, np.uint8)
    for block in blocks:
        grey = to_unit(stored[block])
        if not np.isfinite(grey).all():
            raise BadImageError("has values that are no numbers, or a window of no width")
        shown[block] = np.clip(255 * (1 - grey if is_inverted else grey), 0, 255).round()
    return shown


def unit_scale(data: "Dataset", blocks: list[Stored]) -> Callable[[Stored], Greys]:
    """What makes stored values shown ones in [0, 1] (DICOM PS3.3 C.11.2.1.2 and 3).

    By VOI LUT, else first window, else the full range of all `blocks`.
    """
    if data.get("VOILUTSequence"):
        return partial(by_table, data)
    if data.get("WindowWidth"):
        center, width = (float(np.ravel(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        function = data.get("VOILUTFunction") or "LINEAR"
        if function == "SIGMOID":
            return partial(by_sigmoid, data, center, width)
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        low, high = center - width / 2, center + width / 2
    else:
        ends = [(values.min(), values.max()) for values in map(partial(rescaled, data), blocks)]
        low, high = float(min(ends)[0]), float(max(last for _, last in ends))
    if not high > low:  # one of them may be no number
        raise BadImageError("has one grey only, or a window of no width")
    return partial(by_window, data, low, high)


def rescaled(data: "Dataset", stored: Stored) -> Greys:
    from pydicom.pixels.processing import apply_modality_lut

    return np.asarray(apply_modality_lut(stored, data), np.float32)


def by_table(data: "Dataset", stored: Stored) -> Greys:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    white = np.float32(2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1)
    entries = np.rint(apply_modality_lut(stored, data)).astype(np.int32)
    return np.asarray(apply_voi_lut(entries, data, prefer_lut=True).astype(np.float32) / white)


def by_sigmoid(data: "Dataset", center: float, width: float, stored: Stored) -> Greys:
    return np.asarray(1 / (1 + np.exp(-4 * (rescaled(data, stored) - center) / width)))


def by_window(data: "Dataset", low: float, high: float, stored: Stored) -> Greys:
    return np.asarray(np.clip((rescaled(data, stored) - low) / (high - low), 0, 1))
