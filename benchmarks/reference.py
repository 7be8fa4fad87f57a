"""The report's own model and training step, spelled out once as the yardstick for ours.

Only `tests/test_model.py` and `benchmarks/train.py` use it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_DIM = 256
KLD_RATE = 1e-4


def conv(source: int, target: int) -> list[nn.Module]:
    """One encoder layer of the report."""
    return [nn.Conv2d(source, target, kernel_size=4, stride=2, padding=1), nn.ReLU()]


def deconv(source: int, target: int) -> nn.Module:
    """One decoder layer of the report."""
    return nn.ConvTranspose2d(source, target, kernel_size=4, stride=2, padding=1)


class ReportVAE(nn.Module):
    """The report's first iteration; `direct=True` is its second, without the linear layers."""

    def __init__(self, direct: bool = False) -> None:
        super().__init__()
        self.direct = direct
        self.encoder = nn.Sequential(*conv(1, 32), *conv(32, 64), *conv(64, 128), *conv(128, 256))
        values = 64 * 32 * 32
        if not direct:
            self.fc_mu = nn.Linear(values, LATENT_DIM)
            self.fc_logvar = nn.Linear(values, LATENT_DIM)
            self.expand = nn.Sequential(nn.Linear(LATENT_DIM, values), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (256, 16, 16)),
            *(deconv(256, 128), nn.ReLU(), deconv(128, 64), nn.ReLU(), deconv(64, 32), nn.ReLU()),
            deconv(32, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log-variance; `eps` replaces the drawn noise."""
        features = self.encoder(x).flatten(1)
        if self.direct:
            nothing = features.new_zeros(1)
            return self.decoder(features), nothing, nothing
        mu, logvar = self.fc_mu(features), self.fc_logvar(features)
        eps = torch.randn_like(mu) if eps is None else eps
        return self.decoder(self.expand(mu + torch.exp(0.5 * logvar) * eps)), mu, logvar


def report_loss(out: Tensor, data: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The report's loss: cross-entropy summed over the batch, plus 1e-4 times the summed KL divergence."""
    kl_divergence = KLD_RATE * 0.5 * torch.sum(-1 - logvar + mu.pow(2) + logvar.exp())
    return F.binary_cross_entropy(out, data, reduction="sum") + kl_divergence


def report_step(
    model: ReportVAE, optimizer: torch.optim.Optimizer, data: Tensor, eps: Tensor | None = None
) -> Tensor:
    """One step of the report's training loop; returns the loss."""
    out, mu, logvar = model(data, eps)
    loss = report_loss(out, data, mu, logvar)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
