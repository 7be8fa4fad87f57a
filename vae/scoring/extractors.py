"""Images to features: an extractor that guards its input, and one forward pass for every score."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from data_prep.errors import RunError, WeightsError
from vae.scoring import inception_weights as weights
from vae.study import Study

log = logging.getLogger(__name__)

INCEPTION_INPUT = (
    "8-bit grey, PIL bilinear to 299 px (8-bit again), repeated to 3 channels, 0 to 1 with no ImageNet "
    "normalisation, then torchvision's transform_input, which expects it (as the published code did)"
)
SMOKE_INPUT = "8-bit grey, PIL bilinear to 64 px, 0 to 1"
FOR_CPU = "fp32, channels last, batch norms folded into the convolutions"


class Features(NamedTuple):
    """What one forward pass gives for n images."""

    probabilities: Tensor
    """fp32 [n, 1000] softmax."""
    pool: Tensor
    """fp32 [n, 2048] activations of the last pooling layer."""


def to_8bit(images: Tensor) -> Tensor:
    """Grey values in [0, 1] as uint8: x 255, truncated as torchvision's ToPILImage does; else a RunError."""
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise RunError(f"cannot score images with grey values from {low:g} to {high:g}; allowed: 0 to 1")
    return (images * 255).to(torch.uint8)


@dataclass(frozen=True)
class Extractor:
    """A network that turns 8-bit grey images into features, and everything that identifies it."""

    name: str
    weights_sha256: str
    label: str
    """Empty if scores can be compared with other people's, else the words they must carry."""
    input: str
    """How an image becomes the network's input."""
    size_px: int
    channels: int
    network: nn.Module
    """fp32 [n, channels, size_px, size_px] in [0, 1] -> Features."""
    device: torch.device
    arithmetic: str = ""
    """In what order the network computes, if it is not its own: features of two orders are never mixed."""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 [n, 1, H, W], 0 to 255, on the CPU; TypeError for floats: all black."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 1:
            given = f"{images.dtype} {list(images.shape)}"
            raise TypeError(f"an extractor takes uint8 [n, 1, H, W], given {given}")
        inputs = resize(images, self.size_px).to(self.device).float().div_(255)
        # TF32 would change the third digit of a feature
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            probabilities, pool = self.network(inputs.expand(-1, self.channels, -1, -1))
        if not (torch.isfinite(pool).all() and torch.isfinite(probabilities).all()):
            what = f"{self.name} (weights {self.weights_sha256[:12]}...)"
            raise WeightsError(f"{what} gives features that are no numbers", "use other weights")
        return Features(probabilities.cpu(), pool.cpu())


def resize(images: Tensor, size_px: int) -> Tensor:
    """PIL's bilinear resize of uint8 [n, 1, H, W] to uint8 [n, 1, size_px, size_px], on the CPU.

    Grey is resized before it is repeated to three channels: PIL treats channels alike, so nothing changes.
    """
    pictures = [Image.fromarray(pixels) for pixels in images[:, 0].cpu().numpy()]
    with ThreadPoolExecutor() as threads:  # PIL lets go of the GIL
        size, method = (size_px, size_px), Image.Resampling.BILINEAR
        resized = list(threads.map(lambda picture: picture.resize(size, method), pictures))
    return torch.from_numpy(np.stack(resized)).unsqueeze(1)


def load_extractor(study: Study, device: torch.device) -> Extractor:
    """The study's extractor on `device`, in eval mode; raises as `weights.check`."""
    weights.check(study)
    if study.extractor == "smoke":
        smoke = _Smoke()
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in smoke.buffers())).hexdigest()
        label, smoke = weights.SMOKE_LABEL, smoke.to(device).eval()
        return Extractor("smoke", digest, label, SMOKE_INPUT, 64, 1, smoke, device)
    path = weights.locate(study.inception_weights)
    digest, label = weights.identify(path)
    network, is_on_cpu = Inception(path).to(device).eval(), device.type == "cpu"
    if is_on_cpu:
        for_cpu(network)
    log.info("Inception v3 on %s: %s", device.type, FOR_CPU if is_on_cpu else "as torchvision computes it")
    arithmetic = FOR_CPU if is_on_cpu else ""
    return Extractor("inception", digest, label, INCEPTION_INPUT, 299, 3, network, device, arithmetic)


class Inception(nn.Module):
    """torchvision's Inception v3 as `weights=DEFAULT` makes it, with the last layer split off."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from torchvision.models import inception_v3  # two seconds that the smoke extractor need not wait for

        self.body = inception_v3(weights=None, transform_input=True, init_weights=False)
        try:
            self.body.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # the unpickler and the state dict raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{path} does not hold Inception v3 weights: {reason}") from error
        self.head = self.body.fc
        self.body.fc = nn.Identity()  # as pytorch-ignite does

    def forward(self, inputs: Tensor) -> Features:
        pool = self.body(inputs)  # [n, 2048]
        return Features(F.softmax(self.head(pool), dim=1), pool)


def for_cpu(network: Inception) -> None:
    """Have the network compute twice as fast on a CPU, in eval mode; features change by rounding, 1e-6.

    Not elsewhere: what it does to a GPU has not been measured.
    """
    from torchvision.models.inception import BasicConv2d

    for part in network.modules():
        if isinstance(part, BasicConv2d):
            part.conv = fuse_conv_bn_eval(part.conv, part.bn)
            part.bn = nn.Identity()
    network.to(memory_format=torch.channels_last)


class _Smoke(nn.Module):
    """A tiny network with seeded random weights: exercises every step of scoring in milliseconds."""

    GAIN = 20.0  # spreads the class probabilities, so that no score is lost in rounding

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("first", torch.randn(32, 1, 8, 8, generator=generator) / 8)
        self.register_buffer("second", torch.randn(128, 32, 4, 4, generator=generator) / 512**0.5)
        self.register_buffer("head", torch.randn(1000, 2048, generator=generator) / 2048**0.5)

    def forward(self, inputs: Tensor) -> Features:
        maps = F.relu(F.conv2d((inputs - 0.5) / 0.25, self.get_buffer("first"), stride=4, padding=2))
        maps = F.relu(F.conv2d(maps, self.get_buffer("second"), stride=2, padding=1))  # [n, 128, 8, 8]
        pool = F.adaptive_avg_pool2d(maps, 4).flatten(1)  # [n, 2048]
        return Features(F.softmax(self.GAIN * F.linear(pool, self.get_buffer("head")), dim=1), pool)
