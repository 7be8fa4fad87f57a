"""The two variants are the report's, number for number; the third can sample too."""

import pytest
import torch
from reference import ReportVAE, report_step
from torch import Tensor

from data_prep.errors import RunError
from vae.config import VARIANTS, RunConfig
from vae.losses import bce_per_image, kl_per_image
from vae.model import VAE, build_model

TINY = RunConfig(image_size_px=32, widths=(4, 8, 8, 16), latent_dim=8, latent_channels=4)


def tiny(variant: str) -> VAE:
    return build_model(RunConfig(**{**vars(TINY), "variant": variant}))


def with_weights_of(report: ReportVAE, model: VAE) -> VAE:
    """Our model with the report's weights, which lie in the same order."""
    ours = list(model.parameters())
    names = ["encoder"] + ([] if report.direct else ["fc_mu", "fc_logvar", "expand"]) + ["decoder"]
    theirs = [p for name in names for p in getattr(report, name).parameters()]
    order = ["encoder", "to_mean", "to_log_variance", "from_latents", "decoder"]
    parts = {name: getattr(model, name) for name in order}
    ours = [p for part in parts.values() if part is not None for p in part.parameters()]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    with torch.no_grad():
        for mine, given in zip(ours, theirs, strict=True):
            mine.copy_(given)
    return model


@pytest.mark.parametrize(("variant", "parameters"), [("linear", 51_775_681), ("direct", 1_377_985)])
def test_variants_have_the_reports_size(variant: str, parameters: int) -> None:
    assert sum(p.numel() for p in build_model(RunConfig(variant=variant)).parameters()) == parameters


@pytest.mark.parametrize("variant", ["linear", "direct"])
def test_variants_compute_what_the_report_computes(variant: str) -> None:
    """Same weights, images and noise: the same reconstruction, and the same loss over two Adam steps."""
    torch.manual_seed(0)
    report = ReportVAE(direct=variant == "direct").double()
    config = RunConfig(variant=variant)
    model = with_weights_of(report, build_model(config).double())
    images, noise = torch.rand(2, 1, 256, 256).double(), torch.randn(2, 256).double()
    torch.testing.assert_close(torch.sigmoid(model(images, noise).logits), report(images, noise)[0])
    optimizers = [torch.optim.Adam(m.parameters(), lr=config.lr, fused=True) for m in (report, model)]
    theirs, ours = [], []
    for _ in range(2):
        theirs.append(report_step(report, optimizers[0], images, noise).item())
        ours.append(our_step(model, optimizers[1], images, noise, config.beta))
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert theirs[1] < theirs[0]


def our_step(
    model: VAE, optimizer: torch.optim.Optimizer, images: Tensor, noise: Tensor, beta: float
) -> float:
    output = model(images, noise)
    kl = kl_per_image(output.mean, output.log_variance)
    loss = (bce_per_image(output.logits, images) + beta * kl).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_forward_returns_logits_mean_and_log_variance(variant: str) -> None:
    model = tiny(variant)
    images = torch.rand(3, 1, 32, 32)
    logits, mean, log_variance = model(images, torch.randn(3, *model.latent_shape))
    assert logits.shape == images.shape
    assert mean.shape == (3, *model.latent_shape)
    assert log_variance is None if variant == "direct" else log_variance.shape == mean.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant: str) -> None:
    """DDP waits for ever for parameters that take no part in a step."""
    model = tiny(variant)
    output = model(torch.rand(2, 1, 32, 32), torch.randn(2, *model.latent_shape))
    loss = bce_per_image(output.logits, torch.rand(2, 1, 32, 32)) + kl_per_image(
        output.mean, output.log_variance
    )
    loss.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("variant", ["linear", "spatial"])
def test_noise_of_zero_is_the_mean_and_other_noise_is_not(variant: str) -> None:
    model, images = tiny(variant), torch.rand(2, 1, 32, 32)
    zero = torch.zeros(2, *model.latent_shape)
    torch.testing.assert_close(model(images, zero).logits, model(images).logits)
    assert not torch.allclose(model(images, zero + 1).logits, model(images).logits)


def test_direct_refuses_to_sample_and_says_why() -> None:
    model = tiny("direct")
    with pytest.raises(RunError, match="deterministic autoencoder"):
        model.sample(torch.randn(1, *model.latent_shape))


@pytest.mark.parametrize("variant", ["linear", "spatial"])
def test_samples_are_grey_values(variant: str) -> None:
    model = tiny(variant)
    samples = model.sample(torch.randn(5, *model.latent_shape))
    assert samples.shape == (5, 1, 32, 32)
    assert 0 <= samples.min() < samples.max() <= 1


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(TINY).state_dict()
    torch.manual_seed(2)
    second = build_model(TINY).state_dict()
    other = build_model(RunConfig(**{**vars(TINY), "seed": 1})).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_log_variance_stays_where_its_exponential_is_finite() -> None:
    model = tiny("linear")
    assert model.to_log_variance is not None
    with torch.no_grad():
        model.to_log_variance[1].bias.fill_(1000.0)
    assert model.encode(torch.rand(1, 1, 32, 32))[1].max() == 20
