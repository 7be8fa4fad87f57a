"""The kinds of input, and how many of each the ordinary tests play."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiny import REPOSITORY

from fuzzing import checkpoints, commands, dicom, images, packed, profiles, results, study, tables
from fuzzing.inputs import Bench, Case

# Inputs that went wrong: in the last runs, and once for all.
FOUND_DIR = REPOSITORY / "scratch" / "fuzz"
CRASHES_DIR = REPOSITORY / "tests" / "crashes"


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    make: Callable[[Path], Bench]
    """Prepares what it needs in an empty folder."""
    in_suite: int
    """Inputs that the ordinary tests play."""


KINDS = {
    "images": Kind(images.bench, 600),
    "dicom": Kind(dicom.bench, 300),
    "tables": Kind(tables.bench, 200),
    "packed": Kind(packed.bench, 40),
    "study": Kind(study.bench, 100),
    "results": Kind(results.bench, 20),
    "checkpoints": Kind(checkpoints.bench, 80),
    "commands": Kind(commands.bench, 120),
    "profiles": Kind(profiles.bench, 300),
}


def read_input(path: Path) -> tuple[str, Case]:
    """The kind of an input that was kept as FOLDER/KIND/ANY NAME/PATH, and the case of that path."""
    folder = next(folder for folder in (FOUND_DIR, CRASHES_DIR) if path.resolve().is_relative_to(folder))
    kind, _, *names = path.resolve().relative_to(folder).parts
    return kind, Case("/".join(names), path.read_bytes())
