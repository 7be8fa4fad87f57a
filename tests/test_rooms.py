"""The architecture, read from the imports: jobs -> slurm -> vae -> data_prep, and no other arrow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tiny import REPOSITORY

ROOMS = ["data_prep", "vae", "slurm", "jobs"]
# The rooms each room may look into, beside itself.
ALLOWED = {room: set(ROOMS[: ROOMS.index(room)]) for room in ROOMS}
SCHEDULER = {"submitit"}


def imports(path: Path) -> set[str]:
    """Top-level names of the packages a file imports, at any depth of it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def files(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room: str) -> None:
    assert len(files(room)) > 1
    for path in files(room):
        inward = imports(path) & set(ROOMS)
        assert inward <= ALLOWED[room] | {room}, f"{path.relative_to(REPOSITORY)} imports {inward}"


@pytest.mark.parametrize("room", ["data_prep", "vae"])
def test_the_lower_rooms_know_no_scheduler(room: str) -> None:
    for path in files(room):
        assert not imports(path) & SCHEDULER, path
        assert "SLURM_" not in path.read_text(encoding="utf-8"), path


def test_vae_uses_only_the_shard_format_of_data_prep() -> None:
    used = set()
    for path in files("vae"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("data_prep"):
                used.add(node.module)
    assert used == {"data_prep.shards", "data_prep.errors", "data_prep.files", "data_prep.records"}
