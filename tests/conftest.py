"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set: 32 px, 70 train (in two shards), 10 val and 13 test images."""
    return make_shards(tmp_path_factory.mktemp("shards"))
