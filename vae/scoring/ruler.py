"""The ruler: cheap copies of the test images, judged as reconstructions are.

A VAE that keeps less of the diagnosis than as many plain grey values, or a file of as many bytes, is not
worth training for it.
"""

import io
import logging
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, features

from vae.scoring.classifier import BATCH_IMAGES, Classifiers
from vae.scoring.classifier_record import RulerEntry
from vae.scoring.judgement import judge
from vae.training.data_loader import ImageSplit

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Copy = Callable[[Pixels], tuple[Pixels, float | None]]
"""Copies an image [H, W]; also the bytes of its file, if it is one."""

LATENTS = 256  # of the study's `linear`
PCA_IMAGES = 2000
JPEG_QUALITIES = (50, 10, 3)


def measure_ruler(
    classifiers: Classifiers, train: ImageSplit, test: ImageSplit, device: torch.device
) -> list[RulerEntry]:
    """Every kind of copy, the finest first."""
    found = []
    for name, copy in kinds_of_copies(train, test.image_size_px):
        probabilities, num_bytes, errors = [], [], []
        for start in range(0, len(test), BATCH_IMAGES):
            images = test.take(np.arange(start, min(start + BATCH_IMAGES, len(test))))[:, 0].numpy()
            copies, sizes = zip(*map(copy, images), strict=True)
            num_bytes += [size for size in sizes if size is not None]
            stacked = np.stack(copies)
            errors += list(np.square(stacked.astype(float) - images).mean((1, 2)))
            batch = torch.from_numpy(stacked)[:, None]
            probabilities.append(classifiers.probabilities(batch, device).numpy())
        judgement = judge(
            np.concatenate(probabilities, 1), classifiers.of_test, test.labels, classifiers.record.thresholds
        )
        psnr = float(np.mean([10 * np.log10(255**2 / (error + 1e-10 * 255**2)) for error in errors]))
        size = float(np.mean(num_bytes)) if num_bytes else None
        log.info("ruler: %s: AUC %.4f (real images %.4f)", name, judgement.auc, classifiers.record.real.auc)
        found.append(RulerEntry(name, size, psnr, judgement))
    return found


def kinds_of_copies(train: ImageSplit, size_px: int) -> Iterator[tuple[str, Copy]]:
    """Each kind: its name, and what makes one copy."""
    for quality in JPEG_QUALITIES:
        yield f"JPEG, quality {quality}", partial(compressed, format="JPEG", quality=quality)
    if features.check("webp"):
        yield "WebP, quality 1", partial(compressed, format="WEBP", quality=1)
    if features.check("jpg_2000"):
        jpeg_2000 = partial(compressed, format="JPEG2000", quality_mode="rates")
        yield f"JPEG 2000, about {LATENTS} bytes", partial(jpeg_2000, quality_layers=[size_px**2 / LATENTS])
    side = round(LATENTS**0.5)
    for pixels in (4 * side, 2 * side, side):
        if pixels < size_px:
            yield f"{pixels} x {pixels} px = {pixels**2:,} grey values", partial(shrunk, pixels=pixels)
    sample = train.take(np.linspace(0, len(train) - 1, min(PCA_IMAGES, len(train))).astype(int))
    flat = sample.flatten(1).numpy().astype(np.float32)
    mean, components = principal_components(flat, LATENTS)
    yield f"PCA, {len(components)} components", partial(projected, mean=mean, components=components)
    average = np.rint(mean).astype(np.uint8).reshape(size_px, size_px)
    yield "the mean training image", lambda _: (average, None)


def compressed(image: Pixels, format: str, **options: object) -> tuple[Pixels, float]:
    """An image through a codec, and the bytes of its file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    num_bytes = float(file.tell())
    return np.asarray(Image.open(file).convert("L")), num_bytes


def shrunk(image: Pixels, pixels: int) -> tuple[Pixels, None]:
    """An image down to so many pixels a side and up again."""
    small = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.BICUBIC)), None


def principal_components(flat: Floats, count: int) -> tuple[Floats, Floats]:
    """Mean [d] and up to `count` orthonormal components [count, d] of images [n, d]."""
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    chosen = np.argsort(values)[::-1][: min(count, len(flat) - 1)]
    chosen = chosen[values[chosen] > 1e-9 * values.max()]
    components = (vectors[:, chosen] / np.sqrt(values[chosen])).T.astype(np.float32) @ centred
    return mean, components


def projected(image: Pixels, mean: Floats, components: Floats) -> tuple[Pixels, None]:
    """What the components keep of an image."""
    centred = image.ravel().astype(np.float32) - mean
    kept = components.T @ (components @ centred) + mean
    return np.rint(kept).clip(0, 255).astype(np.uint8).reshape(image.shape), None
