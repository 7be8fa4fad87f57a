"""The kinds of input, and how many of each the ordinary tests play."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzzing import checkpoints, commands, dicom, images, packed, profiles, study, tables
from fuzzing.inputs import Bench, Case


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    make: Callable[[Path], Bench]
    """Prepares what it needs in an empty folder."""
    in_suite: int
    """Inputs that the ordinary tests play."""


KINDS = {
    "images": Kind(images.bench, 1000),
    "dicom": Kind(dicom.bench, 300),
    "tables": Kind(tables.bench, 400),
    "packed": Kind(packed.bench, 60),
    "study": Kind(study.bench, 150),
    "checkpoints": Kind(checkpoints.bench, 80),
    "commands": Kind(commands.bench, 150),
    "profiles": Kind(profiles.bench, 300),
}


def read_input(path: Path) -> tuple[str, Case]:
    """The kind of an input that was kept as `.../KIND/ANY NAME/PATH`, and the case of that path."""
    parts = path.parts
    at = max(number for number, part in enumerate(parts[:-2]) if part in KINDS)
    return parts[at], Case("/".join(parts[at + 2 :]), path.read_bytes())
