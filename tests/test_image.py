"""One image: faithful to a full decode, and refused with a reason when it would be guesswork."""

import io
from pathlib import Path

import numpy as np
import pytest
from pictures import BAD, grey, jpeg, write_bad
from PIL import Image

from data_prep.image import BadImageError, make_picture, read_file, resize


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    error = np.mean((left.astype(float) - right.astype(float)) ** 2)
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_stays_above_50_db_of_a_full_decode_with_bicubic_resize(mode: str) -> None:
    content = jpeg(grey(3, 1100, 1400).convert(mode))
    full = Image.open(io.BytesIO(content)).convert("L").resize((256, 256), Image.Resampling.BICUBIC)
    picture = make_picture(content, ".jpeg", 256, "stretch")
    assert psnr_db(picture.pixels, np.asarray(full)) > 50
    assert (picture.width_px, picture.height_px, picture.mode) == (1400, 1100, mode)


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".png", "PNG"), (".bmp", "BMP"), (".tif", "TIFF"), (".JPG", "JPEG")]
)
def test_common_formats_are_read(suffix: str, kind: str) -> None:
    buffer = io.BytesIO()
    grey(1, 64, 64).save(buffer, kind)
    picture = make_picture(buffer.getvalue(), suffix, 64, "stretch")
    assert psnr_db(picture.pixels, np.asarray(grey(1, 64, 64))) > 35


def test_aspects_stretch_pad_and_crop() -> None:
    """A white 40x20 picture: stretched full, padded with a quarter of black above and below, cropped full."""
    white = Image.new("L", (40, 20), 255)
    assert resize(white, 32, "stretch").min() == 255
    padded = resize(white, 32, "pad")
    assert padded[:8].max() == padded[24:].max() == 0
    assert padded[8:24].min() == 255
    halves = Image.fromarray(
        np.repeat(np.array([[0, 255, 0]], np.uint8), [10, 20, 10], axis=1).repeat(20, axis=0)
    )
    assert resize(halves, 32, "crop")[:, 2:-2].min() == 255  # bicubic blurs the very border


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    write_bad(tmp_path)
    with pytest.raises(BadImageError) as caught:
        make_picture(read_file(tmp_path / name), Path(name).suffix, 32, "stretch")
    assert BAD[name] in str(caught.value)


@pytest.mark.parametrize("cut", range(1, 10))
def test_file_cut_anywhere_is_refused_and_nothing_else_happens(cut: int) -> None:
    content = jpeg(grey(2))
    with pytest.raises(BadImageError):
        make_picture(content[: len(content) * cut // 10], ".jpeg", 32, "stretch")


def test_random_damage_gives_pixels_or_a_reason() -> None:
    """200 files with a few bytes changed: Pillow's many errors never escape."""
    content, rng = jpeg(grey(7)), np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 5):
            damaged[place] = rng.integers(256)
        try:
            outcomes.add(make_picture(bytes(damaged), ".jpeg", 32, "stretch").pixels.shape)
        except BadImageError:
            outcomes.add("refused")
    assert outcomes == {(32, 32), "refused"}
