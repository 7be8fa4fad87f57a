"""Structural similarity as pytorch-ignite defines it, its window in two passes, on the images' device."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_PX, SIGMA_PX = 11, 1.5
# (k L)^2 of Wang et al. 2004 for grey values from 0 to L = 1.
C1, C2 = 0.01**2, 0.03**2


def ssim_per_image(images: Tensor, targets: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of each pair, both [n, 1, H, W] in [0, 1]; float64 [n]. H, W >= 6.

    In float64, for variances are small differences of large numbers: in float32 ignite's is off by 3e-6 on
    X-rays, and on flat images it exceeds 1 by 2e-4.
    """
    x, y = images.double(), targets.double()
    down, across = (window_matrix(length, x.device) for length in x.shape[-2:])
    maps = torch.stack((x, y, x * x + y * y, x * y))
    mean_x, mean_y, squares, product = down @ maps @ across.T
    means, mean_squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    structure = (2 * (product - means) + C2) / (squares - mean_squares + C2)
    similarity: Tensor = structure * (2 * means + C1) / (mean_squares + C1)
    return similarity.mean((1, 2, 3))


@cache
def window_matrix(length: int, device: torch.device) -> Tensor:
    """The Gaussian window along one side, mirrored at the ends, as a banded matrix; float64 [length, length].

    A product with it is faster than a convolution with a single channel, by far on a CPU.
    """
    reach = WINDOW_PX // 2
    window = torch.exp(-0.5 * (torch.linspace(-reach, reach, WINDOW_PX) / SIGMA_PX).square())
    window /= window.sum()
    # ignite rounds the window over both sides to float32: the same total weight, or variances would differ
    total = torch.outer(window, window).double().sum()
    window = window.double() * total.sqrt() / window.double().sum()
    places = F.pad(torch.arange(float(length))[None], (reach, reach), mode="reflect")[0].long()
    rows = torch.arange(length)[:, None].expand(-1, WINDOW_PX)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.index_put_((rows, places.unfold(0, WINDOW_PX, 1)), window.expand(length, -1), accumulate=True)
    return matrix.to(device)
