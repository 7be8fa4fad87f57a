"""Features of real images: computed once, kept in a file, computed again when it is damaged."""

from pathlib import Path

import torch

from vae.scoring.extractors import Features
from vae.scoring.subject import cached


def test_cached_features_are_made_once_and_again_when_damaged(tmp_path: Path) -> None:
    path, made = tmp_path / "cache" / "key.npz", []

    def compute() -> Features:
        made.append(1)
        return Features(torch.full((2, 3), float(len(made))), torch.zeros(2, 4))

    assert cached(path, compute).probabilities[0, 0] == 1
    assert cached(path, compute).probabilities[0, 0] == 1
    path.write_bytes(path.read_bytes()[:-30])
    assert cached(path, compute).probabilities[0, 0] == 2
    assert [p.name for p in path.parent.iterdir()] == ["key.npz"]
