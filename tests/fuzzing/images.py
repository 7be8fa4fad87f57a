"""Image files: every format of Pillow, damaged, misnamed, or with headers that claim what is not there."""

import atexit
import io
import struct
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pictures import black_png, grey
from PIL import Image, PngImagePlugin

from data_prep.decode_pool import decoder
from data_prep.image import SUFFIXES, Aspect
from data_prep.items import Item
from data_prep.pack_plan import PackOptions, Plan
from data_prep.shards import Reject
from fuzzing.damage import damaged
from fuzzing.inputs import Bench, Case, Fault, Finding

# Stands in texts of DICOM files, and must not come out of them.
SECRET = "JANEDOE"
# Modes that each format is written in, in flavours of its own.
MODES = {"JPEG": "L RGB CMYK", "PNG": "L RGB P 1 RGBA LA I;16", "BMP": "L RGB 1 P", "TIFF": "L RGB 1 F I"}
MODES |= dict.fromkeys(("GIF", "PPM", "PCX", "TGA", "ICO", "WEBP", "EPS", "MPO"), "RGB")
PACKINGS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
SUFFIX = st.sampled_from([*sum(SUFFIXES.values(), ()), ".webp", "", ".JPG"])
SIDES = st.sampled_from((0, 1, 15, 16, 4096, 9_999, 65_535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1))

decoders = ExitStack()
atexit.register(decoders.close)


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_files() -> list[bytes]:
    """One file of every flavour that Pillow writes."""
    small, exif, notes = grey(0, 20, 24), Image.Exif(), PngImagePlugin.PngInfo()
    files = []
    for kind, words in MODES.items():
        files += [written(small.convert(mode), kind) for mode in words.split()]
    exif[0x0112], exif[0x010E] = 1, "words"
    notes.add_text("key", "words " * 9, zip=True)
    notes.add_itxt("more", "words " * 9, zip=True)
    files += [written(small, "JPEG", **how) for how in ({"progressive": True}, {"icc_profile": b"x" * 200})]
    files += [written(small, kind, exif=exif) for kind in ("JPEG", "PNG", "TIFF")]
    files += [written(small, kind, save_all=True, append_images=[small]) for kind in ("PNG", "TIFF")]
    modes = dict.fromkeys(PACKINGS, "L") | {"group4": "1"}
    files += [written(small.convert(mode), "TIFF", compression=how) for how, mode in modes.items()]
    return [*files, written(small, "PNG", pnginfo=notes), written(small, "TIFF", big_tiff=True)]


def mended_png(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that what is wrong in them is read."""
    at, parts = 8, [content[:8]]
    while at + 8 <= len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        body = content[at + 4 : at + 8 + size]
        parts.append(content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(parts)


def png(width: int, height: int, bits: int, colour: int, num_bytes: int) -> bytes:
    """A PNG whose header claims anything, over so many zeros."""
    content, sides = black_png(16, 8, 0, num_bytes), struct.pack(">IIBB", width, height, bits, colour)
    return mended_png(content[:16] + sides + content[26:])


def text_png(num_bytes: int, kind: bytes) -> bytes:
    """A small PNG with a compressed text, or profile, that is long."""
    body = kind + b"key\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + zlib.compress(bytes(num_bytes))
    content = black_png(16, 8, 0, 16 * 17)
    return mended_png(content[:33] + struct.pack(">I", len(body) - 4) + body + bytes(4) + content[33:])


def tiff(side: int, bits: int, samples: int, strips: int, packing: int, pages: int) -> bytes:
    """A TIFF that claims anything; its pages are a chain, or a circle where there are 0."""
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, bits), (259, 3, 1, packing), (262, 3, 1, 1)]
    entries += [(273, 4, strips, 8), (277, 3, 1, samples), (278, 4, 1, side), (279, 4, strips, side)]
    page = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    starts = [8 + (len(page) + 4) * number for number in range(1, pages)] + [0 if pages else 8]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(page + struct.pack("<I", start) for start in starts)


def crafted() -> SearchStrategy[bytes]:
    """Files whose headers claim anything."""
    byte, bits = st.integers(0, 255), st.sampled_from((0, 1, 2, 4, 8, 16, 32, 64))
    sizes, pages = (
        st.sampled_from((0, 300, 1 << 16, 1 << 22, 1 << 26)),
        st.sampled_from((1, 0, 2, 1000, 50_000)),
    )
    strips, packings = st.sampled_from((1, 0, 2, 1 << 16, (1 << 32) - 1)), st.integers(1, 8) | byte
    return st.one_of(
        st.builds(png, SIDES, SIDES, bits, st.integers(0, 7), sizes),
        st.builds(text_png, sizes, st.sampled_from((b"zTXt", b"iTXt", b"iCCP"))),
        st.builds(tiff, SIDES | st.just(16), bits, byte, strips, packings, pages),
    )


def decoder_of(kind: Literal["files", "dicom"], folder: Path) -> Callable[[Case], None]:
    """Decodes a file as packing does, in each aspect; refuses a reason that quotes it or is no text."""
    options = [PackOptions(size_px=32, aspect=aspect) for aspect in get_args(Aspect)]
    plans = [Plan("", kind, str(folder), option, ("A",), ()) for option in options]
    decodes = [decoders.enter_context(decoder(plan, 1)) for plan in plans]

    def decode(case: Case) -> None:
        path = folder / case.name
        path.write_bytes(case.content)
        try:
            [result] = decodes[len(case.content) % len(decodes)]([Item("key", "A", "train", "", case.name)])
        finally:
            path.unlink()
        if isinstance(result, Reject) and (SECRET in result.reason or not result.reason.isprintable()):
            raise Finding(Fault.ACCEPTED, "the reason quotes the file", result.reason)

    return decode


def bench(folder: Path) -> Bench:
    """Each becomes a picture, or is refused with a reason."""
    content = st.one_of(*map(damaged, good_files()))
    mended = st.one_of(*(damaged(file) for file in good_files() if file[1:4] == b"PNG")).map(mended_png)
    contents = content | content | mended | crafted()
    names = SUFFIX.map(lambda suffix: f"a{suffix}")
    return Bench(st.builds(Case, names, contents), decoder_of("files", folder))
