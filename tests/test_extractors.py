"""Images to features: exactly what torchvision and pytorch-ignite would have fed and found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.metrics.gan.utils import InceptionModel
from pictures import smooth_images
from PIL import Image
from torchvision import transforms

from data_prep.errors import RunError, WeightsError
from data_prep.files import sha256_file
from vae.scoring.extractors import Extractor, Inception, load_extractor, resize, to_8bit
from vae.study import Study

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smoke() -> Extractor:
    return load_extractor(Study("x", extractor="smoke"), CPU)


def test_floats_become_bytes_as_topilimage_makes_them() -> None:
    images = torch.rand(3, 1, 20, 20)
    expected = [np.asarray(transforms.ToPILImage()(image)) for image in images]
    assert np.array_equal(to_8bit(images)[:, 0].numpy(), np.stack(expected))


def test_packed_bytes_survive_the_way_over_floats() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_8bit(values.float() / 255), values)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), 255.0])
def test_values_outside_the_range_are_refused(bad: float) -> None:
    images = torch.full((2, 1, 4, 4), 0.5)
    images[1, 0, 2, 2] = bad
    with pytest.raises(RunError, match="allowed: 0 to 1"):
        to_8bit(images)


def test_resize_is_that_of_the_report_on_repeated_grey() -> None:
    images = smooth_images(2)
    for image, ours in zip(images, resize(images, 299), strict=True):
        rgb = transforms.ToPILImage()(image.repeat(3, 1, 1)).resize((299, 299), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(rgb), ours.expand(3, -1, -1).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 1, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
    ],
)
def test_the_extractor_refuses_other_types_and_shapes(smoke: Extractor, images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="takes uint8"):
        smoke(images)


def test_smoke_features_are_the_same_every_time_and_carry_a_label(smoke: Extractor) -> None:
    again = load_extractor(Study("x", extractor="smoke"), CPU)
    first, second = smoke(smooth_images(3)), again(smooth_images(3))
    assert torch.equal(first.probabilities, second.probabilities)
    assert torch.equal(first.pool, second.pool)
    assert first.probabilities.shape == (3, 1000)
    assert first.pool.shape == (3, 2048)
    assert torch.allclose(first.probabilities.sum(1), torch.ones(3))
    assert again.weights_sha256 == smoke.weights_sha256
    assert smoke.label == "smoke, not comparable"


def test_inception_gives_what_torchvision_and_ignite_give(inception_weights: Path, hub: Path) -> None:
    extractor = load_extractor(Study("x", inception_weights=str(inception_weights)), CPU)
    images = smooth_images(3)
    inputs = torch.stack(
        [
            transforms.ToTensor()(
                transforms.ToPILImage()(image.repeat(3, 1, 1)).resize((299, 299), Image.Resampling.BILINEAR)
            )
            for image in images
        ]
    )
    features = extractor(images)
    with torch.inference_mode():
        plain = Inception(inception_weights).eval()(inputs)
    assert torch.equal(plain.probabilities, InceptionModel(return_features=False)(inputs))
    assert torch.equal(plain.pool, InceptionModel(return_features=True)(inputs))
    # on a CPU in another order, so but for rounding
    assert extractor.arithmetic
    torch.testing.assert_close(features.pool, plain.pool, rtol=1e-4, atol=1e-5 * plain.pool.std().item())
    torch.testing.assert_close(features.probabilities, plain.probabilities, rtol=1e-3, atol=1e-6)
    assert features.probabilities.std(0).max() > 0.01  # the seeded network tells images apart
    assert extractor.label == "unknown weights, not comparable"


def test_a_file_that_holds_other_weights_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    path.with_name("other.pth.sha256").write_text(f"{sha256_file(path)}  other.pth")
    with pytest.raises(WeightsError, match="does not hold Inception v3 weights") as caught:
        load_extractor(Study("x", inception_weights=str(path)), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_gives_the_features_of_the_cpu(inception_weights: Path) -> None:
    study = Study("x", inception_weights=str(inception_weights))
    on_cpu = load_extractor(study, CPU)(smooth_images(4))
    on_gpu = load_extractor(study, torch.device("cuda"))(smooth_images(4))
    torch.testing.assert_close(on_gpu.pool, on_cpu.pool, rtol=1e-3, atol=1e-3 * float(on_cpu.pool.std()))
