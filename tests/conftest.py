"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import REPOSITORY, make_shards

# Real X-rays for the tests marked `xrays`; the project contains none.
XRAYS = REPOSITORY.parent / "shared" / "chest_xray"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set: 32 px, 70 train (in two shards), 10 val and 13 test images."""
    return make_shards(tmp_path_factory.mktemp("shards"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here: X-rays beside the checkout, a GPU. (SLURM tests decide for themselves.)"""
    for item in items:
        if item.get_closest_marker("xrays") and not XRAYS.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"needs the X-rays in {XRAYS}"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
