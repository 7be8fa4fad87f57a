"""Structural similarity in two passes against pytorch-ignite's, in one."""

import pytest
import torch
import torch.nn.functional as F
from ignite.metrics import SSIM
from pictures import smooth_images

from vae.scoring.ssim import ssim_per_image


def ignite_ssim(images: torch.Tensor, targets: torch.Tensor) -> float:
    metric = SSIM(data_range=1.0)
    metric.update((images, targets))
    return float(metric.compute())


def noisy(images: torch.Tensor) -> torch.Tensor:
    return (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


PAIRS = {
    "blurred": lambda x: (x, F.avg_pool2d(x, 5, 1, 2)),
    "noisy": lambda x: (x, noisy(x)),
    "inverted": lambda x: (x, 1 - x),
    "flat": lambda x: (torch.full_like(x, 0.7), noisy(torch.full_like(x, 0.7))),
    "oblong": lambda x: (x[..., :50], noisy(x)[..., :50]),
    "as small as can be": lambda x: (x[..., :6, :6], noisy(x)[..., :6, :6]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_it_is_that_of_ignite(pair: str) -> None:
    """In float64, for in float32 ignite's own rounding reaches 1e-4 on flat images."""
    images, targets = PAIRS[pair](smooth_images(3).float() / 255)
    expected = [
        ignite_ssim(image.double()[None], target.double()[None])
        for image, target in zip(images, targets, strict=True)
    ]
    ours = ssim_per_image(images, targets)
    assert ours.dtype == torch.float64
    assert ours.tolist() == pytest.approx(expected, abs=1e-8)


def test_it_is_that_of_ignite_in_single_precision_where_that_can_be_had() -> None:
    images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(images, 3, 1, 1)
    assert ssim_per_image(images, blurred).mean().item() == pytest.approx(
        ignite_ssim(images, blurred), abs=1e-6
    )


def test_an_image_is_wholly_similar_to_itself() -> None:
    """ignite's exceeds 1 on flat images."""
    images = torch.cat((smooth_images(2).float() / 255, torch.full((1, 1, 48, 48), 0.7)))
    assert ssim_per_image(images, images).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
