"""Classifiers of the label, by which reconstructions are asked whether the diagnosis is kept.

Several, which differ in their seed: two trainings of one classifier judge blurred images very differently.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.errors import ToolkitError
from vae.scoring.classifier_record import (
    TEST_FILE,
    ClassifierRecord,
    classifiers_dir,
    read_classifiers,
    weights_name,
)
from vae.training.checkpoint import check_header, first_words

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

INPUT_PX = 128
INPUT = f"8-bit grey, averaged to {INPUT_PX} px, (x - 0.5) / 0.25"
BATCH_IMAGES = 64


@dataclass(frozen=True, eq=False)
class Classifiers:
    """Classifiers that are ready to judge images."""

    record: ClassifierRecord
    networks: list[nn.Module]
    of_test: Array
    """Probabilities of the real test images, [seeds, n, classes]."""

    @torch.inference_mode()
    def probabilities(self, images: Tensor, device: torch.device) -> Tensor:
        """Of uint8 images [n, 1, H, W]: float64 [seeds, n, classes], on the CPU."""
        inputs = to_input(images, device)
        return torch.stack([F.softmax(logits(network, inputs), 1) for network in self.networks])


@torch.inference_mode()
def logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network in eval mode says, fp64 [n, classes], on the CPU; computed in full fp32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return network(inputs).double().cpu()  # type: ignore[no-any-return]


def resnet(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 for one grey channel, with weights drawn from torch's generator."""
    from torchvision.models import resnet18  # two seconds that a report need not wait for

    network = resnet18(weights=None, num_classes=num_classes)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images [n, 1, H, W] as the classifiers take them, fp32 [n, 1, INPUT_PX, INPUT_PX]."""
    unit = images.to(device).float().div_(255)
    if images.shape[-1] != INPUT_PX:
        unit = F.adaptive_avg_pool2d(unit, INPUT_PX)
    return unit.sub_(0.5).div_(0.25).contiguous(memory_format=torch.channels_last)


NO_CLASSIFIERS = (
    "there are no classifiers of these images; `python jobs/classify.py DATA` makes them, once for all "
    "studies, then score again"
)


def load_classifiers(
    runs_dir: Path, fingerprint: str, device: torch.device
) -> tuple[Classifiers | None, str]:
    """The classifiers for images with this fingerprint; or None, and why."""
    folder = classifiers_dir(runs_dir, fingerprint)
    try:
        record = read_classifiers(runs_dir, fingerprint)
        if record is None:
            return None, NO_CLASSIFIERS
        networks = [load_network(folder, seed, len(record.class_names), device) for seed in record.seeds]
        check_header(folder / TEST_FILE)
        of_test = load_file(folder / TEST_FILE)["probabilities"]
    except (ToolkitError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        reason = f"the classifiers in {folder} cannot be used: {first_words(error)}"
        hint = ClassifierRecord.IF_DAMAGED
        log.warning("%s; %s", reason, hint)
        return None, f"{reason}; {hint}"
    return Classifiers(record, networks, of_test.double().numpy()), ""


def load_network(folder: Path, seed: int, num_classes: int, device: torch.device) -> nn.Module:
    """One classifier, in eval mode."""
    path = folder / weights_name(seed)
    check_header(path)
    network = resnet(num_classes)
    network.load_state_dict(load_file(path))
    return network.to(device).eval()


def recipe(fingerprint: str, settings: object) -> str:
    """What a half-trained classifier must have been made from, to be trained on."""
    return msgspec.json.encode([fingerprint, INPUT, msgspec.to_builtins(settings)]).decode()
