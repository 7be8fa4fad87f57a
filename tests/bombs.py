"""Small files that cost much to decode: each lies about itself in a way of its own."""

import io
import struct
import zlib
from collections.abc import Callable

from pictures import black_png
from PIL import Image

ZEROS = bytes(1 << 20)


def deflated_zeros(num_mb: int) -> bytes:
    """A raw deflate stream of that many megabytes, about a thousandth as long."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflate.compress(ZEROS) + deflate.flush(zlib.Z_FULL_FLUSH)
    return block * num_mb + deflate.flush()


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One element of a DICOM file, little-endian with a VR."""
    value += b"\0" * (len(value) % 2)
    is_long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    length = struct.pack("<HI", 0, len(value)) if is_long else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + length + value


def dicom_file(syntax: str, body: bytes) -> bytes:
    """The beginning of every DICOM file, then its data."""
    return bytes(128) + b"DICM" + element(0x00020010, b"UI", syntax.encode()) + body


def image_elements(rows: int, columns: int, bits: int = 16) -> bytes:
    """What a DICOM file says of its pixels."""
    grey_bits = [(0x00280100, bits), (0x00280101, bits), (0x00280102, bits - 1), (0x00280103, 0)]
    numbers = [(0x00280002, 1), (0x00280010, rows), (0x00280011, columns), *grey_bits]
    kind = element(0x00280004, b"CS", b"MONOCHROME2")
    texts = [element(tag, b"US", struct.pack("<H", number)) for tag, number in numbers]
    return texts[0] + kind + b"".join(texts[1:])


def fragments(*parts: bytes) -> bytes:
    """Compressed pixels of a DICOM file."""
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (b"", *parts))
    head = struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0\xff\xff\xff\xff"
    return head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def tiff(num_pages: int = 1, num_strips: int = 1, side_px: int = 32) -> bytes:
    """A grey TIFF; each page points at the next, and all at the same strips."""
    strips = struct.pack(f"<{num_strips}I", *[8] * num_strips)
    counts = struct.pack(f"<{num_strips}I", *[side_px * side_px // num_strips] * num_strips)
    pixels = bytes(side_px * side_px)
    tables_at = 8 + len(pixels)
    first_page_at = tables_at + len(strips) + len(counts)
    is_table = num_strips > 1
    places = (tables_at, tables_at + len(strips)) if is_table else (8, len(pixels))
    rows = max(1, side_px // num_strips)
    short = [(256, side_px), (257, side_px), (258, 8), (259, 1), (262, 1)]
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in short]
    entries.append(struct.pack("<HHII", 273, 4, num_strips, places[0]))
    entries.append(struct.pack("<HHIHH", 278, 3, 1, rows, 0))
    entries.append(struct.pack("<HHII", 279, 4, num_strips, places[1]))
    page = struct.pack("<H", len(entries)) + b"".join(entries)
    starts = [first_page_at + number * (len(page) + 4) for number in range(1, num_pages)]
    pages = b"".join(page + struct.pack("<I", start) for start in (*starts, 0))
    return b"II*\0" + struct.pack("<I", first_page_at) + pixels + strips + counts + pages


def scans_jpeg(num_scans: int, side_px: int) -> bytes:
    """A progressive JPEG of one grey in which one scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side_px, side_px), 128).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * num_scans + b"\xff\xd9"


def chunks_png(num_chunks: int) -> bytes:
    """A PNG with very many chunks that mean nothing."""
    content = black_png(32, 8, 0, 32 * 33)
    chunk = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return content[:33] + chunk * num_chunks + content[33:]


def text_png(num_mb: int) -> bytes:
    """A PNG with a compressed text of many megabytes."""
    body = b"Comment\0\0" + zlib.compress(bytes(num_mb << 20))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    content = black_png(32, 8, 0, 32 * 33)
    return content[:33] + chunk + content[33:]


def rle_bmp(side_px: int) -> bytes:
    """An 8-bit BMP of runs, which Pillow takes apart in Python."""
    palette = b"".join(bytes([value, value, value, 0]) for value in range(256))
    row = b"\1\0" * side_px + b"\0\0"
    body = row * side_px + b"\0\1"
    at = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + palette + body


def nested(depth: int) -> bytes:
    """Sequences within sequences."""
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    head = struct.pack("<HH", 0x0008, 0x1140) + b"SQ\0\0\xff\xff\xff\xff"
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return (head + item) * depth + ends * depth


def deflated_image() -> bytes:
    """Deflated data whose pixels go on for two gigabytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = image_elements(64, 64) + struct.pack("<HH", 0x7FE0, 0x0010) + b"OW\0\0\xff\xff\xff\x7f"
    return deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH) + deflated_zeros(2_000)


PLAIN, DEFLATED, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
SIDE_PX = 4_000
EMPTY = element(0x00080008, b"CS", b"")

# What a processor inflates in the time for a header is that much, or less.
INFLATED = r"inflates to more than 128 MiB|takes far longer"
# Each file, and a pattern of the reason for which it is put aside.
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "pages.tif": (lambda: tiff(num_pages=50_000), "several pictures"),
    "strips.tif": (lambda: tiff(num_strips=2_000_000), "takes far longer"),
    "scans.jpeg": (lambda: scans_jpeg(500, SIDE_PX), "takes far longer"),
    "chunks.png": (lambda: chunks_png(2_000_000), "takes far longer"),
    "text.png": (lambda: text_png(100), r"is truncated or damaged \(ValueError"),
    "pixels.png": (lambda: black_png(20_000, 8, 0, 25_000_000), "has more than 40,000,000 pixels"),
    "runs.bmp": (lambda: rle_bmp(SIDE_PX), "takes far longer"),
    "zeros.dcm": (lambda: dicom_file(DEFLATED, deflated_zeros(4_000)), INFLATED),
    "image.dcm": (lambda: dicom_file(DEFLATED, deflated_image()), INFLATED),
    "elements.dcm": (lambda: dicom_file(PLAIN, EMPTY * 2_000_000), "takes far longer"),
    "nested.dcm": (lambda: dicom_file(PLAIN, nested(100_000)), r"\(RecursionError while its header"),
    "scans.dcm": (lambda: jpeg_in_dicom(SIDE_PX, scans_jpeg(500, SIDE_PX)), "takes far longer"),
    "fragments.dcm": (lambda: jpeg_in_dicom(512, *[b""] * 2_000_000), "takes far longer"),
}


def jpeg_in_dicom(side_px: int, *parts: bytes) -> bytes:
    """A DICOM file of 8 bits whose pixels are a JPEG file in these parts."""
    return dicom_file(JPEG, image_elements(side_px, side_px, 8) + fragments(*parts))
