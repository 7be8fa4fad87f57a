"""The two terms of the objective, per image and in nats: reconstruction and KL divergence."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """`values` in fp32 if they came in half precision: sums over 65,536 pixels overflow fp16."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def bce_per_image(logits: Tensor, images: Tensor) -> Tensor:
    """Binary cross-entropy summed over pixels, in nats, [b].

    From logits, because a half-precision sigmoid is coarser than 8 bit and plain BCE is refused under
    CUDA autocast. Its minimum is not 0 but the entropy of the grey values, up to ln 2 per pixel.

    Args:
        logits: [b, 1, H, W].
        images: [b, 1, H, W] targets in [0, 1].
    """
    losses = F.binary_cross_entropy_with_logits(
        at_least_fp32(logits), at_least_fp32(images), reduction="none"
    )
    return losses.flatten(1).sum(1)


def entropy_per_image(images: Tensor) -> Tensor:
    """What `bce_per_image` is at its least, for logits that give the very grey values; in nats, [b]."""
    grey = images.double().flatten(1)
    return -(torch.xlogy(grey, grey) + torch.xlogy(1 - grey, 1 - grey)).sum(1)


def kl_per_image(mean: Tensor, log_variance: Tensor | None) -> Tensor:
    """KL(q(z|x) || N(0, I)) in nats, [b]; 0 where there is no distribution (`direct`).

    Kingma & Welling 2014, appendix B: 1/2 sum(mean^2 + exp(lv) - 1 - lv). Written with expm1, which keeps
    the digits of latents that have almost collapsed to the prior.
    """
    mean = at_least_fp32(mean)
    if log_variance is None:
        return mean.new_zeros(len(mean))
    log_variance = at_least_fp32(log_variance)
    terms = mean.square() + (torch.expm1(log_variance) - log_variance)
    return 0.5 * terms.flatten(1).sum(1)
