"""digests.json: size and SHA-256 of every file that a run's result consists of, to find what is lost.

    trained    done.json and the final checkpoint
    scored     scores.json, draws.json, the figures, and the features of real images that the study keeps

It is written just before done.json and again just before scores.json. Runs of older code have none.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from data_prep.errors import DamagedFile
from data_prep.files import sha256_file
from data_prep.json_records import Record, read_record, to_text, write_record
from vae.run_dir import (
    CHECKPOINTS_DIR,
    DIGESTS_FILE,
    DONE_FILE,
    DRAWS_FILE,
    FEATURES_DIR,
    FIGURES_DIR,
    SCORES_FILE,
    Done,
    read_done,
    weights_name,
)

# What may stand in the list: it must lead nowhere else.
LISTED = re.compile(
    rf"{DONE_FILE}|{SCORES_FILE}|{DRAWS_FILE}|{CHECKPOINTS_DIR}/step_\d{{8,}}/\w+\.\w+|{FIGURES_DIR}/\w+\.png"
    rf"|{re.escape(FEATURES_DIR)}/\w+\.\w+"
)
# What to do about the files of a training, and about those of a scoring.
TRAIN_AGAIN = f"remove the run's {DONE_FILE} and launch again: it trains on from the last whole checkpoint"
SCORE_AGAIN = "score it again: python jobs/evaluate.py STUDY/RUN"
# ... about what `find_losses` finds.
LAUNCH_AGAIN = "launch again: what is lost is made again, and nothing else"


class FileDigest(Record, frozen=True):
    """One file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileDigest":
        """That of a file as it is."""
        return cls(path.stat().st_size, sha256_file(path))

    @classmethod
    def of_record(cls, record: msgspec.Struct) -> "FileDigest":
        """That of the file which `write_record` will write."""
        content = to_text(record).encode()
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def damage(self, path: str | Path, reads_all: bool) -> str:
        """What has become of the file, as in `is lost`; empty if it is whole as far as it is read."""
        try:
            found = os.stat(path)  # noqa: PTH116  (making a Path takes five times as long)
            is_same = stat.S_ISREG(found.st_mode) and found.st_size == self.bytes
            is_same = is_same and (not reads_all or sha256_file(Path(path)) == self.sha256)
        except FileNotFoundError:
            return "is lost"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return "" if is_same else "has changed"


Files = dict[str, FileDigest]


class Digests(Record, frozen=True):
    """digests.json: files by their path in the run's folder, features by theirs in the study's."""

    IF_DAMAGED = "remove it; nothing vouches for the run's files then, until it is trained or scored again"

    trained: Files = msgspec.field(default_factory=dict)
    scored: Files = msgspec.field(default_factory=dict)

    @property
    def files(self) -> Files:
        return self.trained | self.scored

    @property
    def shown(self) -> Files:
        """The scores and the figures, which the report shows."""
        return {name: self.scored[name] for name in self.scored if not name.startswith(FEATURES_DIR)}

    def __post_init__(self) -> None:
        for name in self.files:
            if not LISTED.fullmatch(name):
                raise DamagedFile(f"{name!r} is not a file of a run")


def read_digests(run_dir: Path) -> Digests:
    """The list, empty if there is none; DamagedFile if it holds anything else."""
    return read_record(run_dir / DIGESTS_FILE, Digests) or Digests()


def note_trained(run_dir: Path, done: Done, checkpoint: Files) -> None:
    """Write down what done.json and the final checkpoint are."""
    trained = {DONE_FILE: FileDigest.of_record(done), **checkpoint}
    write_record(run_dir / DIGESTS_FILE, Digests(trained, read_digests_or_none(run_dir).scored))


def note_scored(run_dir: Path, scores: msgspec.Struct, paths: Iterable[Path]) -> None:
    """Write down what scores.json, the figures and the features behind them are."""
    files = {_name(run_dir, path): FileDigest.of(path) for path in paths}
    scored = {SCORES_FILE: FileDigest.of_record(scores), **files}
    write_record(run_dir / DIGESTS_FILE, Digests(read_digests_or_none(run_dir).trained, scored))


def read_digests_or_none(run_dir: Path) -> Digests:
    """As `read_digests`, but a damaged list, which is about to be written anew, counts as none."""
    try:
        return read_digests(run_dir)
    except DamagedFile:
        return Digests()


def _name(run_dir: Path, path: Path) -> str:
    is_own = path.is_relative_to(run_dir)
    return path.relative_to(run_dir if is_own else run_dir.parent).as_posix()


def damages(run_dir: Path, files: Mapping[str, FileDigest], reads_all: bool) -> Iterator[str]:
    """What has become of these files: `figures/loss.png is lost`."""
    for name, digest in files.items():
        folder = run_dir.parent if name.startswith(FEATURES_DIR) else run_dir
        if damage := digest.damage(f"{folder}/{name}", reads_all):
            yield f"{name} {damage}"


# --- a look at names and sizes, which a thousand runs can afford -------------------------------------------


@dataclass(frozen=True)
class Losses:
    """What a launch has to make again, as far as names and sizes tell."""

    weights: str = ""
    """What has become of the final weights; empty if they are there."""
    scores: str = ""
    """... of the scores or of a figure."""


def find_losses(run_dir: Path, done: Done | None) -> Losses:
    """What is lost of a complete run; nothing of one that is not. May raise DamagedFile."""
    if done is None:
        return Losses()
    digests, name = read_digests(run_dir), weights_name(done)
    listed = {name: digests.trained[name]} if name in digests.trained else {}
    # of a run of older code, which may be a copy without checkpoints
    is_old = not digests.trained and (run_dir / CHECKPOINTS_DIR).is_dir()
    is_gone = is_old and not (run_dir / name).exists()
    return Losses(
        next(damages(run_dir, listed, reads_all=False), f"{name} is lost" if is_gone else ""),
        next(damages(run_dir, digests.shown, reads_all=False), ""),
    )


def find_changes(run_dir: Path) -> list[str]:
    """What has become of what a report shows of a run (done.json, scores.json, figures), by every byte."""
    digests = read_digests(run_dir)
    done = {name: digests.trained[name] for name in digests.trained if name == DONE_FILE}
    changes = [f"{damage}; {TRAIN_AGAIN}" for damage in damages(run_dir, done, reads_all=True)]
    return changes + [
        f"{damage}; {SCORE_AGAIN}" for damage in damages(run_dir, digests.shown, reads_all=True)
    ]


# --- every byte ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of the files of one run's result."""

    run: str
    num_files: int
    """Files that were compared with their digests."""
    problems: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.problems


def verify(run_dir: Path) -> Verdict:
    """Compare every byte of a run's result with the digests that were written down of it."""
    try:
        done, digests = read_done(run_dir), read_digests(run_dir)
    except DamagedFile as error:
        return Verdict(run_dir.name, 0, (f"{error}; {error.hint}",))
    problems = [f"{damage}; {TRAIN_AGAIN}" for damage in damages(run_dir, digests.trained, reads_all=True)]
    problems += [f"{damage}; {SCORE_AGAIN}" for damage in damages(run_dir, digests.scored, reads_all=True)]
    notes = []
    if done is None:
        notes.append("is not trained to the end")
    elif not digests.trained:  # older code trained it; done.json itself vouches for the weights
        notes.append("carries no digests of its training, only that of its weights")
        weights = run_dir / weights_name(done)
        if not weights.exists() or sha256_file(weights) != done.weights_sha256:
            problems.append(f"{weights_name(done)} is lost or has changed; {TRAIN_AGAIN}")
    if not digests.scored and (run_dir / SCORES_FILE).exists():
        notes.append("carries no digests of its scores")
    return Verdict(run_dir.name, len(digests.files), tuple(problems), ", ".join(notes))
