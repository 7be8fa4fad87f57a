"""What is written down of a data set's classifiers, and where they lie. Imports no torch.

runs/.classifiers/<fingerprint>/     made by jobs/classify.py, once for a data set, for all studies
    seed-0.safetensors ...             a ResNet-18 (He et al. 2016, arXiv 1512.03385) for each seed
    seed-0.part.pt ...                 where an unfinished training goes on
    test.safetensors                   what they say of the real test images
    classifiers.json                   how they were made, what they reach, the ruler; written last
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data_prep.errors import DamagedFile
from data_prep.files import sha256_file
from data_prep.json_records import Record, read_record
from vae.run_dir import CLASSIFIERS_DIR
from vae.scoring.judgement import Judgement

RECORD_FILE, TEST_FILE = "classifiers.json", "test.safetensors"


@dataclass(frozen=True)
class ClassifierSettings:
    """How each classifier is trained."""

    seeds: int = 3
    """Classifiers, which differ in their seed."""
    epochs: int = 6
    """At most; training stops where the validation loss has not fallen `patience` times."""
    patience: int = 2
    batch_size: int = 32
    lr: float = 3e-4
    weight_decay: float = 0.01


class RulerEntry(Record, frozen=True):
    """What the classifiers say of one cheap kind of copy of the test images."""

    name: str
    bytes_per_image: float | None
    """Of its compressed file; None for what is no file."""
    psnr_db: float
    judgement: Judgement


class ClassifierRecord(Record, frozen=True):
    """classifiers.json."""

    IF_DAMAGED = "remove its folder and make the classifiers again: python jobs/classify.py DATA"

    settings: ClassifierSettings
    data_fingerprint: str
    class_names: list[str]
    input: str
    seeds: list[int]
    epochs: list[int]
    """How many each was trained before the validation loss stopped falling."""
    val_auc: list[float]
    thresholds: list[float]
    """Above which probability of the second class each decides for it (Youden's on validation images)."""
    sha256: dict[str, str]
    """Of the files beside this one."""
    real: Judgement
    """On the real test images."""
    ruler: list[RulerEntry]

    @property
    def digest(self) -> str:
        """What stands for the classifiers on a card."""
        return ", ".join(self.sha256[name][:12] for name in sorted(self.sha256))


def classifiers_dir(runs_dir: Path, fingerprint: str) -> Path:
    """Where the classifiers for images with this fingerprint lie."""
    return runs_dir / CLASSIFIERS_DIR / fingerprint[:32]


def read_classifiers(runs_dir: Path, fingerprint: str) -> ClassifierRecord | None:
    """The record of the classifiers for these images, None if there are none; DamagedFile unless all their
    files are whole."""
    folder = classifiers_dir(runs_dir, fingerprint)
    record = read_record(folder / RECORD_FILE, ClassifierRecord)
    if record is None or record.data_fingerprint != fingerprint:
        return None
    for name, digest in record.sha256.items():
        path = folder / name
        if not path.is_file() or _digest(path, path.stat().st_mtime_ns) != digest:
            raise DamagedFile(f"{path} is lost or has changed", ClassifierRecord.IF_DAMAGED)
    return record


@cache
def _digest(path: Path, _written_ns: int) -> str:
    """SHA-256 of a file as it was written then: a study asks for the same files for each of its runs."""
    return sha256_file(path)


def weights_name(seed: int) -> str:
    """File of one classifier."""
    return f"seed-{seed}.safetensors"


def part_name(seed: int) -> str:
    """File of one classifier that is not trained to its end."""
    return f"seed-{seed}.part.pt"
