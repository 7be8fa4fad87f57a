"""DICOM files: damaged bytes, elements of odd value representations, sequences in sequences, bombs."""

import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing.inputs import Bench, Case, Fault, Finding, Folder, damaged
from fuzzing.images import SECRET, decoder_of
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pydicom.encaps import encapsulate
from pictures import grey, jpeg

from data_prep.sources import find_items

SIDE_PX = 16
VRS = ("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN")
VRS += ("SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV", "??", "\0\0")
TAGS = (0x00080005, 0x00080016, 0x00100010, 0x00100020, 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011)
TAGS += (0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056)
TAGS += (0x00283000, 0x00283002, 0x00283006, 0x00283010, 0x00280301, 0x00020010, 0x00291010, 0x7FE00010, 0xFFFEE0DD)
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
TEXTS = (b"", b"MONOCHROME2 ", b"1\\2\\3", SECRET.encode(), b"-1", b"1e999 ", b"nan ", b"YES ", b"x" * 64, b"\xff\xfe\0\0", bytes(8), b"ISO_IR 192", b"2147483648")


def dataset(syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    """A small radiograph."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.PatientID, data.PatientName = SECRET, SECRET
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = SIDE_PX
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    pixels = np.arange(SIDE_PX**2, dtype=">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    data.add_new("PixelData", "OW", pixels)
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def written(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@cache
def good_files() -> list[bytes]:
    """One file for each way in which radiographs are stored."""
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 8], bytes(512)
    lut["LUTData"].VR = "OW"
    nested = Dataset()
    nested.PatientID = "inner"
    for _ in range(20):
        outer = Dataset()
        outer.ReferencedPatientSequence = [nested]
        nested = outer
    files = [dataset(syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)]
    files += [dataset(WindowCenter=[100, 2], WindowWidth=[50, 3], RescaleSlope=2, RescaleIntercept=-5), dataset(VOILUTSequence=[lut])]
    files += [dataset(ReferencedPatientSequence=[nested]), dataset(WindowCenter=9, WindowWidth=9, VOILUTFunction="SIGMOID")]
    run_lengths = dataset()
    run_lengths.compress(RLELossless)
    baseline = dataset("1.2.840.10008.1.2.4.50", BitsAllocated=8, BitsStored=8, HighBit=7)
    baseline.PixelData = encapsulate([jpeg(grey(0, SIDE_PX, SIDE_PX))])
    baseline["PixelData"].is_undefined_length = True
    return [written(data) for data in (*files, run_lengths, baseline)]


def element(tag: int, vr: str, value: bytes, length: int | None) -> bytes:
    """One explicit element, whose stated length may be a lie."""
    head, size = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode(), len(value) if length is None else length
    return head + (struct.pack("<HI", 0, size) if vr in LONG else struct.pack("<H", size & 0xFFFF)) + value


def with_elements(content: bytes, elements: list[bytes], is_deflated: bool) -> bytes:
    """The elements before all others of a file, which is deflated if asked for."""
    start = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    body = b"".join(elements) + content[start:]
    if not is_deflated:
        return content[:start] + body
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = good_files()[3]
    start = 132 + 12 + struct.unpack("<I", deflated[140:144])[0]
    return deflated[:start] + packer.compress(body) + packer.flush()


def bomb(num_bytes: int, at_end: bool) -> bytes:
    """A deflated file that is mostly zeros: in an unknown element, or behind everything."""
    zeros = element(0x00291010, "OB", bytes(num_bytes), None)
    first = good_files()[0]
    return with_elements(first + zeros, [], True) if at_end else with_elements(first, [zeros], True)


def nested(depth: int, vr: str) -> bytes:
    """Sequences in sequences, of no stated length."""
    return element(0x00081120, vr, b"\xfe\xff\x00\xe0\xff\xff\xff\xff", 0xFFFFFFFF) * depth


def bench(folder: Path) -> Bench:
    """Each is listed, and becomes a picture or is refused with a reason."""
    files = good_files()
    box = Folder(folder / "dicom")
    box.path.mkdir()
    lengths = st.none() | st.sampled_from((0, 1, 3, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF))
    odd = st.builds(element, st.sampled_from(TAGS), st.sampled_from(VRS), st.sampled_from(TEXTS), lengths)
    deep = st.builds(nested, st.sampled_from((1, 30, 500, 5000)), st.sampled_from(("SQ", "UN")))
    odd_elements = st.builds(with_elements, st.just(files[0]), st.lists(odd | deep, min_size=1, max_size=4), st.booleans())
    bombs = st.builds(bomb, st.sampled_from((1 << 16, 1 << 24, 1 << 28)), st.booleans())
    plain = st.one_of(*map(damaged, files))
    content = st.integers(0, 39).flatmap(lambda n: bombs if n == 39 else odd_elements if n % 2 else plain)

    decode = decoder_of("dicom", folder)

    def play(case: Case) -> None:
        with warnings.catch_warnings(record=True) as spoken, box.holding(case):
            warnings.simplefilter("always")
            find_items(str(box.path), folder / "salt")
        if any(SECRET in str(warning.message) for warning in spoken):
            raise Finding(Fault.ACCEPTED, "a warning quotes the file", str(spoken[0].message))
        decode(case)

    return Bench(st.builds(Case, st.sampled_from(("a.dcm", "a", "a.1")), content), play)
