"""Fixtures that several test files share."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_site import bare_site, full_site, site  # noqa: F401  (fixtures)
from devcluster import bare_cluster, cluster  # noqa: F401  (fixtures)
from fake_slurm import FakeSlurm
from tiny import REPOSITORY, make_run, make_shards

from data_prep.files import sha256_file
from vae.scoring.inception_weights import FILE_NAME
from vae.study import Study, prepare_study

# Real X-rays for the tests marked `xrays`; the project contains none.
XRAYS = REPOSITORY.parent / "shared" / "chest_xray"


@pytest.fixture
def fake_slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster in memory in the place of SLURM's programs; nothing is queued."""
    fake = FakeSlurm()
    fake.install(monkeypatch)
    return fake


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set: 32 px, 70 train (in two shards), 10 val and 13 test images."""
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def scored_study(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A study with two runs scored by the smoke extractor, one that was stopped and one never started.

    Tests that write into it take a copy.
    """
    from vae.scoring.evaluate import evaluate
    from vae.training.trainer import train

    study = Study("tiny", ("linear-s0", "direct-s0", "linear-s1", "direct-s1"), extractor="smoke")
    folder = tmp_path_factory.mktemp("runs") / study.name
    prepare_study(folder, study)
    for name in ("linear-s0", "direct-s0"):
        train(make_run(folder / name, shards, variant=name.split("-")[0]))
        evaluate(folder / name, study)
    steps = iter(range(5))
    train(make_run(folder / "linear-s1", shards, seed=1), lambda: next(steps, None) is None)
    return folder


@pytest.fixture
def study_dir(scored_study: Path, tmp_path: Path) -> Path:
    """A copy of the scored study to write into."""
    return Path(shutil.copytree(scored_study, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception v3 with seeded weights, saved like the published file: old pickle format, no batch counts."""
    import torch
    from torch import nn
    from torchvision.models import inception_v3

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = inception_v3(weights=None, transform_input=True, init_weights=False)
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        # classes that tell images apart: logits with mean 0 and deviation 3 over some images
        images = nn.functional.interpolate(torch.rand(4, 1, 5, 5), size=299, mode="bilinear")
        head, network.fc = network.fc, nn.Identity()
        pool = network.eval()(images.repeat(1, 3, 1, 1))
        nn.init.normal_(head.weight, std=3 / (pool - pool.mean(0)).norm(dim=1).mean().item())
        head.bias.copy_(-head.weight @ pool.mean(0))
        network.fc = head
    state = network.state_dict()
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        del state[name]
    state._metadata.clear()
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256_file(path)}  {path.name}\n")
    return path


@pytest.fixture
def hub(inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of torch.hub where `weights=DEFAULT` finds our Inception weights, for ignite's own extractor."""
    path = tmp_path / "hub" / "checkpoints" / FILE_NAME
    path.parent.mkdir(parents=True)
    path.symlink_to(inception_weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def pytest_configure() -> None:
    """Make children like those of a user, whatever shell or script runs the tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # to compile all that is imported takes half a second


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here: X-rays beside the checkout, a GPU. (SLURM tests decide for themselves.)

    Files with tests on a cluster come first, for they take longest; then those with other slow tests.
    """
    for item in items:
        if item.get_closest_marker("xrays") and not XRAYS.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"needs the X-rays in {XRAYS}"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    first = {item.path for item in items if item.get_closest_marker("slurm")}
    second = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in first, item.path not in second))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With CXR_CI=1 a skipped test has failed, unless it needs what a test machine need not have."""
    report = yield
    is_excused = item.get_closest_marker("gpu") or (item.get_closest_marker("xrays") and not XRAYS.is_dir())
    if (
        os.environ.get("CXR_CI") == "1"
        and report.skipped
        and not is_excused
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped where it must run: {report.longrepr}"
    return report
