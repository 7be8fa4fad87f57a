"""Losses with answers known on paper."""

import math

import pytest
import torch
import torch.nn.functional as F

from vae.losses import bce_per_image, kl_per_image


def test_undecided_logits_cost_ln_2_a_pixel() -> None:
    """BCE(0.5, t) = ln 2 for every target t."""
    bce = bce_per_image(torch.zeros(3, 1, 4, 5), torch.rand(3, 1, 4, 5))
    torch.testing.assert_close(bce, torch.full((3,), 20 * math.log(2)))


def test_perfect_grey_reconstruction_costs_the_entropy_of_the_greys() -> None:
    target = torch.full((1, 1, 2, 2), 0.25)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert bce_per_image(torch.logit(target), target).item() == pytest.approx(4 * entropy)


def test_bce_is_the_reports_summed_over_pixels() -> None:
    logits, target = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    expected = F.binary_cross_entropy(torch.sigmoid(logits), target, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(bce_per_image(logits, target), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_do_not_overflow(dtype: torch.dtype) -> None:
    """65,536 pixels of 5 nats are 5 times what fp16 can hold."""
    bce = bce_per_image(torch.full((1, 1, 256, 256), -5.0, dtype=dtype), torch.ones(1, 1, 256, 256))
    assert bce.dtype == torch.float32
    assert bce.item() == pytest.approx(65536 * math.log1p(math.exp(5)), rel=1e-4)


def test_kl_of_the_prior_is_zero_and_of_a_shifted_one_half_its_square() -> None:
    zero = torch.zeros(2, 4)
    assert kl_per_image(zero, zero).tolist() == [0.0, 0.0]
    assert kl_per_image(zero + 3, zero).tolist() == [18.0, 18.0]


def test_kl_agrees_with_torch_distributions() -> None:
    mean, log_variance = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(posterior, prior).sum((1, 2, 3))
    torch.testing.assert_close(kl_per_image(mean, log_variance), expected)


def test_kl_keeps_the_digits_of_almost_collapsed_latents() -> None:
    """lv = 1e-3: (e^lv - 1 - lv) / 2 = 2.5008e-7; the naive form in fp32 is 5 % off."""
    kl = kl_per_image(torch.zeros(1, 1), torch.full((1, 1), 1e-3)).item()
    assert kl == pytest.approx(0.5 * (1e-6 / 2 + 1e-9 / 6), rel=1e-3)


def test_direct_has_no_kl() -> None:
    assert kl_per_image(torch.randn(2, 3, 4, 4), None).tolist() == [0.0, 0.0]
