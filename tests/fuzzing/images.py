"""Image files: every format of Pillow, damaged, misnamed, or with headers that claim what is not there."""

import atexit
import io
import struct
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
from fuzzing.inputs import Bench, Case, Fault, Finding, damaged
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image, PngImagePlugin
from pictures import black_png, grey

from data_prep.decode_pool import decoder
from data_prep.image import SUFFIXES, Aspect
from data_prep.pack_plan import PackOptions, Plan
from data_prep.shards import Reject
from data_prep.sources import Item, Kind

# Stands in texts of DICOM files, and must not come out of them.
SECRET = "JANEDOE"
STACK = ExitStack()
atexit.register(STACK.close)

SUFFIX = st.sampled_from([*(suffix for names in SUFFIXES.values() for suffix in names), ".webp", "", ".JPG"])
ODD_SIDE = st.sampled_from((0, 1, 15, 16, 4096, 9_999, 10_001, 65_535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1))


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_files() -> list[bytes]:
    """One file of every flavour that the four formats have, and of other formats."""
    small, colour = grey(0, 20, 24), Image.merge("RGB", [grey(seed, 20, 24) for seed in (1, 2, 3)])
    exif, notes = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010E] = 1, "words"
    notes.add_text("key", "words " * 9, zip=True)
    notes.add_itxt("more", "words " * 9, zip=True)
    deep = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24))
    files = [written(colour, "JPEG", **how) for how in ({}, {"progressive": True}, {"exif": exif}, {"icc_profile": b"x" * 200})]
    files += [written(small, "JPEG"), written(colour.convert("CMYK"), "JPEG"), written(colour, "MPO", save_all=True, append_images=[colour])]
    files += [written(image, "PNG") for image in (small, colour, deep, small.convert("P"), small.convert("1"), colour.convert("RGBA"))]
    files += [written(small, "PNG", pnginfo=notes), written(small, "PNG", exif=exif), black_png(32, 16, 2, 32 * 193)]
    files += [written(small, "PNG", save_all=True, append_images=[small])]
    files += [written(image, "BMP") for image in (small, colour, small.convert("1"), small.convert("P"))]
    packings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files += [written(image, "TIFF", compression=how) for how in packings for image in (small, colour)]
    files += [written(small, "TIFF", save_all=True, append_images=[small, small]), written(deep, "TIFF"), written(small.convert("F"), "TIFF")]
    files += [written(small, "TIFF", big_tiff=True), written(small.convert("1"), "TIFF", compression="group4")]
    return files + [written(colour, kind) for kind in ("GIF", "PPM", "PCX", "TGA", "ICO", "WEBP", "EPS")]


def mended_png(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that what is wrong in them is read."""
    at, parts = 8, [content[:8]]
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + length]
        parts.append(content[at : at + 8] + body + struct.pack(">I", zlib.crc32(kind + body)))
        at += 12 + length
    return b"".join(parts)


def png(width: int, height: int, bits: int, colour: int, lace: int, packed: int) -> bytes:
    """A PNG whose header claims anything, over `packed` zeros."""
    content = black_png(16, 8, 0, packed)
    return mended_png(content[:16] + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, lace) + content[29:])


def text_png(num_bytes: int, kind: bytes) -> bytes:
    """A small PNG with a compressed text that is long."""
    body = {b"zTXt": b"key\0\0", b"iTXt": b"key\0\1\0\0\0", b"iCCP": b"key\0\0"}[kind] + zlib.compress(bytes(num_bytes))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    content = black_png(16, 8, 0, 16 * 17)
    return content[:33] + chunk + content[33:]


def tiff(side: int, bits: int, samples: int, strips: int, packing: int, pages: int) -> bytes:
    """A little-endian TIFF that claims anything; its pages are a chain, or a circle where there are 0."""
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, bits), (259, 3, 1, packing), (262, 3, 1, 1)]
    entries += [(273, 4, strips, 8), (277, 3, 1, samples), (278, 4, 1, side), (279, 4, strips, side * side & 0xFFFFFFFF)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    size = len(body) + 4
    chain = [body + struct.pack("<I", 8 + size * (number + 1)) for number in range(pages - 1)]
    last = body + struct.pack("<I", 0 if pages else 8)
    return b"II*\0" + struct.pack("<I", 8) + b"".join(chain) + last + bytes(64)


def bmp(width: int, height: int, bits: int, packing: int, colours: int) -> bytes:
    """A BMP that claims anything."""
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, bits, packing, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 64, 0, 0, 54) + info + bytes(64)


def crafted() -> SearchStrategy[bytes]:
    """Files whose headers claim anything."""
    small = st.integers(0, 255)
    bits = st.sampled_from((0, 1, 2, 4, 8, 15, 16, 24, 32, 64))
    return st.one_of(
        st.builds(png, ODD_SIDE, ODD_SIDE, bits, st.integers(0, 7), st.integers(0, 2), st.sampled_from((0, 300, 1 << 22))),
        st.builds(text_png, st.sampled_from((10, 1 << 16, 1 << 21, 1 << 26)), st.sampled_from((b"zTXt", b"iTXt", b"iCCP"))),
        st.builds(
            tiff, ODD_SIDE | st.just(16), bits, small, st.sampled_from((1, 0, 2, 1 << 16, (1 << 32) - 1)),
            st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 32773, 50000)) | small, st.sampled_from((1, 0, 2, 1000, 50_000)),
        ),
        st.builds(bmp, ODD_SIDE, ODD_SIDE, bits, st.integers(0, 6), ODD_SIDE),
    )


def bench(folder: Path) -> Bench:
    """Each becomes a picture, or is refused with a reason that is one line of text."""
    content = st.one_of(*map(damaged, good_files()))
    contents = content | content.filter(lambda data: data[1:4] == b"PNG").map(mended_png) | crafted()
    decode = decoder_of("files", folder)
    return Bench(st.builds(lambda suffix, data: Case(f"a{suffix}", data), SUFFIX, contents), decode)


def decoder_of(kind: Kind, folder: Path) -> Callable[[Case], None]:
    """Decodes a file as packing does, each aspect in its turn, in a process that lives as long as this one."""
    decoders = []
    for aspect in get_args(Aspect):
        plan = Plan("", kind, str(folder), PackOptions(size_px=32, aspect=aspect), ("A",), ())
        decoders.append(STACK.enter_context(decoder(plan, 1)))

    def decode(case: Case) -> None:
        (folder / case.name).write_bytes(case.content)
        item = Item("key", "A", "train", "", case.name)
        try:
            [result] = decoders[len(case.content) % len(decoders)]([item])
        finally:
            (folder / case.name).unlink()
        if isinstance(result, Reject) and not result.reason.isprintable():
            raise Finding(Fault.ACCEPTED, "a reason holds what is no text", result.reason)
        if isinstance(result, Reject) and SECRET in result.reason:
            raise Finding(Fault.ACCEPTED, "a reason quotes the file", result.reason)

    return decode
