"""Features of real images: computed once, kept in a file, and again unless it is just the one wanted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny import TINY
from torch import Tensor

from vae.config import RunConfig
from vae.model import VAE
from vae.run_dir import FEATURES_DIR
from vae.scoring.extractors import Features, load_extractor
from vae.scoring.resampling import NO_HALVES
from vae.scoring.score_cards import ScoreCard
from vae.scoring.subject import Subject, cached, content_digest
from vae.study import Study
from vae.training.data_loader import load_split

KEY = "a" * 64
OURS = Features(torch.full((2, 3), 0.25), torch.arange(8.0).reshape(2, 4))


class Made:
    """Counts how often the features were computed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Features:
        self.times += 1
        return OURS


def is_ours(features: Features) -> bool:
    return all(torch.equal(tensor, own) for tensor, own in zip(features, OURS, strict=True))


def test_features_are_computed_once_and_kept(tmp_path: Path) -> None:
    path, made = tmp_path / "cache" / "key.safetensors", Made()
    assert is_ours(cached(path, KEY, 2, made))
    assert is_ours(cached(path, KEY, 2, made))
    assert made.times == 1
    assert [p.name for p in path.parent.iterdir()] == ["key.safetensors"]


def forged(features: dict[str, Tensor], made_from: str = KEY, digest: str | None = None) -> bytes:
    """A file such as ours; its digest is right unless it is given."""
    try:
        right = content_digest(Features(**features))
    except TypeError:
        right = ""
    return save(features, {"made_from": made_from, "sha256": right if digest is None else digest})


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[:-3],
    "empty": lambda content: b"",
    "a flipped bit": lambda content: content[:-2] + bytes([content[-2] ^ 4]) + content[-1:],
    "other numbers of the same shape": lambda content: forged(
        {"probabilities": OURS.probabilities, "pool": OURS.pool + 1}, digest=content_digest(OURS)
    ),
    "made from other images": lambda content: forged(OURS._asdict(), made_from="b" * 64),
    "without digests": lambda content: save(OURS._asdict()),
    "of other images than asked for": lambda content: forged(
        {"probabilities": OURS.probabilities[:1], "pool": OURS.pool[:1]}
    ),
    "of another type": lambda content: forged({name: t.double() for name, t in OURS._asdict().items()}),
    "without one of the two": lambda content: forged({"pool": OURS.pool}),
    "a huge header": lambda content: (1 << 40).to_bytes(8, "little") + content[8:],
    "a picture": lambda content: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_the_one_wanted_is_made_again_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    path, made = tmp_path / "key.safetensors", Made()
    cached(path, KEY, 2, made)
    path.write_bytes(CHANGES[change](path.read_bytes()))
    assert is_ours(cached(path, KEY, 2, made))
    assert made.times == 2
    assert [f"{path} does not fit and is made again: " in message for message in caplog.messages] == [True]
    assert is_ours(cached(path, KEY, 2, made))
    assert made.times == 2


def test_of_two_runs_that_are_scored_at_once_the_first_to_end_is_believed_by_both(tmp_path: Path) -> None:
    """GPUs round differently each time; the scores of both must rest on the numbers in the file."""
    path = tmp_path / "key.safetensors"
    other = Features(OURS.probabilities, OURS.pool + 1e-6)

    def slower() -> Features:
        assert is_ours(cached(path, KEY, 2, Made()))  # meanwhile
        return other

    assert is_ours(cached(path, KEY, 2, slower))
    assert is_ours(cached(path, KEY, 2, slower))
    assert [p.name for p in tmp_path.iterdir()] == ["key.safetensors"]


@pytest.fixture
def two_studies(tmp_path: Path) -> tuple[Path, Path]:
    """Files of the same features in two studies side by side; the first is there."""
    mine, other = (tmp_path / "runs" / name / FEATURES_DIR / "key.safetensors" for name in ("mine", "other"))
    cached(other, KEY, 2, Made())
    return mine, other


def test_a_study_beside_that_has_the_features_is_copied_from(two_studies: tuple[Path, Path]) -> None:
    mine, other = two_studies
    made = Made()
    assert is_ours(cached(mine, KEY, 2, made))
    assert made.times == 0
    assert mine.read_bytes() == other.read_bytes()
    other.write_bytes(b"")  # whatever becomes of it
    assert is_ours(cached(mine, KEY, 2, made))
    assert made.times == 0


@pytest.mark.parametrize("change", ["cut off", "made from other images", "of another type"])
def test_a_damaged_file_of_another_study_is_neither_used_nor_removed(
    two_studies: tuple[Path, Path], change: str
) -> None:
    mine, other = two_studies
    other.write_bytes(damaged := CHANGES[change](other.read_bytes()))
    made = Made()
    assert is_ours(cached(mine, KEY, 2, made))
    assert (made.times, other.read_bytes()) == (1, damaged)


def test_features_computed_in_another_order_are_not_mixed(shards: Path, tmp_path: Path) -> None:
    """They differ by rounding, and a distance of two sets must not see that."""
    split, model = load_split(shards, "test"), VAE(RunConfig(**TINY))
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    for arithmetic in ("", "another order", ""):
        changed = replace(extractor, arithmetic=arithmetic)
        Subject("x", model, 0, split, changed, ScoreCard(), tmp_path, NO_HALVES).real_features(
            split, "test", np.arange(3)
        )
    assert len([*tmp_path.iterdir()]) == 2


def test_without_hard_links_features_are_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path, made = tmp_path / "key.safetensors", Made()
    cached(path, KEY, 2, made)
    assert is_ours(cached(path, KEY, 2, made))
    assert made.times == 1


def test_any_flipped_bit_of_the_numbers_is_found(tmp_path: Path) -> None:
    path, made = tmp_path / "key.safetensors", Made()
    cached(path, KEY, 2, made)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for number, place in enumerate(range(start, len(whole)), 2):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        assert is_ours(cached(path, KEY, 2, made))
        assert made.times == number


def test_a_cache_of_older_code_is_not_unpickled(tmp_path: Path) -> None:
    """It was an archive of NumPy; under another name, so it is neither read nor in the way."""
    old = tmp_path / "key.npz"
    np.savez(old, **{name: tensor.numpy() for name, tensor in OURS._asdict().items()})
    made = Made()
    cached(tmp_path / "key.safetensors", KEY, 2, made)
    assert made.times == 1
