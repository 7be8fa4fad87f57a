"""DICOM files: damaged bytes, elements of odd value representations, sequences in sequences, bombs."""

import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from pictures import grey, jpeg
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from data_prep.sources import find_items
from fuzzing.damage import damaged
from fuzzing.images import SECRET, decoder_of
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.places import Place

SIDE_PX = 16
# Transfer syntaxes that pixels are not compressed in: implicit, explicit, deflated, big-endian.
PLAIN = [f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2")]
VRS = "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US ??"
LONG_VRS = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
TAGS = """
00020010 00080005 00080016 00100010 00100020 00280002 00280004 00280008 00280010 00280011 00280100 00280101
00280102 00280103 00280301 00281050 00281051 00281052 00281053 00281056 00283000 00283010 7fe00010 fffee0dd
"""
TEXTS = [b"", b"1\\2\\3", b"1e999 ", b"x" * 64, b"\xff\xfe\0\0", bytes(8), SECRET.encode(), b"2147483648"]
TEXTS += [text.ljust(16).encode() for text in ("MONOCHROME2", "-1", "nan", "YES", "ISO_IR 192", SECRET)]


def dataset(syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    """A small radiograph."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID("1.2.3")
    data.PatientID = data.PatientName = SECRET
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = SIDE_PX
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.add_new("PixelData", "OW", bytes(range(256)) * 2)
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def written(data: Dataset) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@cache
def good_files() -> list[bytes]:
    """One file for each way in which radiographs are stored."""
    lut = Dataset()
    lut.LUTDescriptor = [256, 0, 8]
    lut.add_new("LUTData", "OW", bytes(512))
    files = [*map(dataset, PLAIN), dataset(VOILUTSequence=[lut], ReferencedPatientSequence=[lut])]
    files.append(dataset(WindowCenter=[100, 2], WindowWidth=[50, 3], RescaleSlope=2, RescaleIntercept=-5))
    files.append(dataset(WindowCenter=9, WindowWidth=9, VOILUTFunction="SIGMOID"))
    run_lengths, baseline = dataset(), dataset(JPEGBaseline8Bit, BitsAllocated=8, BitsStored=8, HighBit=7)
    run_lengths.compress(RLELossless)
    baseline.PixelData = encapsulate([jpeg(grey(0, SIDE_PX, SIDE_PX))])
    baseline["PixelData"].is_undefined_length = True
    return [written(data) for data in (*files, run_lengths, baseline)]


def element(tag: str, vr: str, value: bytes, size: int | None) -> bytes:
    """One explicit element, whose stated size may be a lie."""
    head, size = struct.pack("<HH", int(tag[:4], 16), int(tag[4:], 16)), len(value) if size is None else size
    is_long = vr in LONG_VRS.split()
    return (
        head
        + vr.encode()
        + (struct.pack("<HI", 0, size) if is_long else struct.pack("<H", size % 65536))
        + value
    )


def with_elements(elements: list[bytes], is_deflated: bool) -> bytes:
    """A file with these elements before its own."""
    plain, deflated = good_files()[1], good_files()[2]
    start = 144 + struct.unpack("<I", plain[140:144])[0]
    parts = [*elements, plain[start:]]
    if not is_deflated:
        return plain[:start] + b"".join(parts)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return (
        deflated[: 144 + struct.unpack("<I", deflated[140:144])[0]]
        + b"".join(map(packer.compress, parts))
        + packer.flush()
    )


def zeros(num_bytes: int) -> bytes:
    """A deflated file that is mostly zeros."""
    block = bytes(1 << 16)
    return with_elements([element("00291010", "OB", b"", num_bytes), *[block] * (num_bytes >> 16)], True)


def nested(depth: int, vr: str) -> bytes:
    """Sequences in sequences, of no stated length."""
    return element("00081120", vr, b"\xfe\xff\x00\xe0\xff\xff\xff\xff", 0xFFFFFFFF) * depth


def bench(folder: Path) -> Bench:
    """Each is listed, and becomes a picture or is refused; nothing that is said quotes it."""
    sizes = st.none() | st.sampled_from((0, 1, 3, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF))
    tags, vrs = st.sampled_from(TAGS.split()), st.sampled_from(f"{VRS} {LONG_VRS}".split())
    deep = st.builds(nested, st.sampled_from((1, 30, 500, 5000)), st.sampled_from(("SQ", "UN")))
    odd = st.builds(element, tags, vrs, st.sampled_from(TEXTS), sizes) | deep
    odd_files = st.builds(with_elements, st.lists(odd, min_size=1, max_size=4), st.booleans())
    bombs, plain = (
        st.sampled_from((1 << 16, 1 << 24, 1 << 28)).map(zeros),
        st.one_of(*map(damaged, good_files())),
    )
    # a bomb takes as long as a hundred others
    contents = st.integers(0, 99).flatmap(lambda n: bombs if n == 99 else odd_files if n % 2 else plain)
    (folder / "dicom").mkdir()
    place, decode = Place(folder / "dicom"), decoder_of("dicom", folder)

    def play(case: Case) -> None:
        with warnings.catch_warnings(record=True) as spoken, place.holding(case):
            warnings.simplefilter("always")
            find_items(str(place.path), folder / "salt")
        if quotes := [str(warning.message) for warning in spoken if SECRET in str(warning.message)]:
            raise Finding(Fault.ACCEPTED, "a warning quotes the file", quotes[0])
        decode(case)

    return Bench(st.builds(Case, st.sampled_from(("a.dcm", "a", "a.1")), contents), play)
