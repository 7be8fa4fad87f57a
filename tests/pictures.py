"""Image files made on the spot: good ones, and every kind of bad one."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

# What a bad file is quarantined for, by its name.
BAD = {
    "empty.jpeg": "is empty",
    "truncated.jpeg": "is truncated or damaged",
    "text.jpeg": "is not an image",
    "really_png.jpeg": "is PNG inside, but is named .jpeg",
    "deep.png": "16 bits",
    "deep_rgb.png": "16 bits",
    "pages.tif": "several pictures",
    "phone.jpeg": "is MPO inside",
    "palette.png": "palette",
    "rgba.png": "transparency",
    "cmyk.jpeg": "print colours",
    "rotated.jpeg": "EXIF orientation 6",
    "flat.png": "1 px",
    "bomb.png": "pixels",
    "dangling.jpeg": "cannot be read: No such file",
    "circle.jpeg": "cannot be read: Too many levels of symbolic links",
    "pipe.jpeg": "is not a regular file",
}


def grey(seed: int, height: int = 60, width: int = 80) -> Image.Image:
    """A smooth grey picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    """`image` as a JPEG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def black_png(side_px: int, bits: int, colour: int, num_bytes: int) -> bytes:
    """A PNG of zeros; `colour` 0 is grey, 2 is RGB. Its header may claim more pixels than it has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side_px, side_px, bits, colour, 0, 0, 0)
    body = zlib.compress(bytes(num_bytes))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_bad(folder: Path) -> None:
    """One file for each name in BAD."""
    good = jpeg(grey(0))
    (folder / "empty.jpeg").touch()
    (folder / "truncated.jpeg").write_bytes(good[: len(good) // 2])
    (folder / "text.jpeg").write_text("not an image")
    grey(1).save(folder / "really_png.jpeg", "PNG")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(folder / "deep.png")
    grey(2).convert("P").save(folder / "palette.png")
    grey(3).convert("RGBA").save(folder / "rgba.png")
    (folder / "cmyk.jpeg").write_bytes(jpeg(grey(4).convert("CMYK")))
    (folder / "deep_rgb.png").write_bytes(black_png(32, 16, 2, 32 * (1 + 32 * 6)))
    grey(7).save(folder / "pages.tif", save_all=True, append_images=[grey(8)])
    grey(9).save(folder / "phone.jpeg", "MPO", save_all=True, append_images=[grey(10)])
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "rotated.jpeg").write_bytes(jpeg(grey(5), exif=exif))
    grey(6, height=1).save(folder / "flat.png")
    (folder / "bomb.png").write_bytes(black_png(20_000, 8, 0, 25_000_000))  # 25 kB that claim 400 megapixels
    (folder / "dangling.jpeg").symlink_to("nowhere.jpeg")
    (folder / "circle.jpeg").symlink_to("circle.jpeg")
    os.mkfifo(folder / "pipe.jpeg")


def kaggle(root: Path, train: int = 40, test: int = 10, val: int = 0) -> Path:
    """The Kaggle layout with patients named as in the Kermany set; two images each."""
    seed = 0
    for split, count in {"train": train, "val": val, "test": test}.items():
        for number in range(count):
            patient = number // 2 + (1000 if split == "test" else 0)
            for label, name in (
                ("NORMAL", f"IM-{patient:04d}-{number:04d}.jpeg"),
                ("PNEUMONIA", f"person{patient}_{'bacteria' if patient % 2 else 'virus'}_{number}.jpeg"),
            ):
                path = root / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                seed += 1
                path.write_bytes(jpeg(grey(seed)))
    return root


def smooth_images(count: int, size_px: int = 48) -> torch.Tensor:
    """Smooth random images, uint8 [count, 1, size_px, size_px]."""
    import torch

    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size_px, mode="bilinear")
    return (255 * smooth).to(torch.uint8)
