"""Where images come from: folders, a CSV, DICOM files or phantoms, as one list of items with a patient each.

Listing reads names (and, for DICOM, where headers begin), never pixels, so that it is quick on a login node.
Of DICOM files, and with `hash_names` of any, items hold no names, only salted hashes: `find_paths` lists the
source again when its files are to be read.
"""

import functools
import hashlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path
from shlex import quote
from typing import Literal

from msgspec.structs import replace

from data_prep import dicom, folder_source, phantom
from data_prep.csv_source import read_csv
from data_prep.errors import DataError
from data_prep.files import temporary_path
from data_prep.image import SUFFIXES
from data_prep.items import MAX_PATIENT_CHARS, NO_LABEL, Item, Kind, clean_patient, folded_patient, unescape

PHANTOM = re.compile(r"phantom:(\d+)")
MIN_PHANTOMS, MAX_PHANTOMS = 16, 1_000_000
IMAGE_SUFFIXES = {*chain.from_iterable(SUFFIXES.values())}
SALT_FILE = ".patient-salt"

SOURCES = "a folder of class folders (also split into train/val/test), a CSV, a DICOM folder, or phantom:N"


@dataclass(frozen=True)
class Naming:
    """What becomes of the names of folders and files."""

    label_from: Literal["", "folder"] = ""
    """`folder`: the classes of DICOM files are their folders, too, not only those of other images."""
    hash_names: bool = False
    """Salted hashes stand for the names of all files and patients, as they always do for DICOM."""


USUAL = Naming()


@dataclass(frozen=True)
class Source:
    """A kind of source, the folder its paths start from, what is in it, and what the user should know."""

    kind: Kind
    root: Path
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def find_items(source: str, out: Path, may_write: bool = True, naming: Naming = USUAL) -> Source:
    """List everything in `source`, a folder, CSV, DICOM folder or `phantom:N`; DataError if there is nothing.

    Where names are hidden, a secret salt is kept in `out`, the folder of the shards, if it `may_write` there;
    else `keep_salt` must follow before anything is made of the items.
    """
    if match := PHANTOM.fullmatch(source):
        return drawn(match[1])
    # List the files, and see of what kind they are.
    root, items, is_csv = list_source(source)
    if naming.label_from and is_csv:
        raise DataError("--label-from folder is for folders", "the CSV names classes in its column label")
    is_dicom = any(map(functools.partial(_is_dicom, root), items))
    hides_names = is_dicom or naming.hash_names
    if not is_csv:
        folder_source.refuse_splits_in_classes(root, items, may_name=not hides_names)
    # Take patients from DICOM files, but classes from folders only if that was asked for.
    notes: list[str] = []
    if is_dicom:
        dicom.import_pydicom()
        items = [item if is_csv and item.group else with_own_patient(root, item) for item in items]
        notes += notes_on_strays(items)
    if is_dicom and not is_csv:
        notes += notes_on_classes(items, naming)
        items = items if naming.label_from else [replace(item, label=NO_LABEL) for item in items]
    notes += notes_on_patients(items)
    # Put hashes for what must not leave the source.
    kind: Kind = "dicom" if is_dicom else "files"
    if hides_names:
        if may_write and not keep_salt(out):  # another task of the same pack was first
            salt_of.cache_clear()
        items = list(map(functools.partial(hidden, kind, hasher(out)), items))
    return Source(kind, root, tuple(items), tuple(notes))


def drawn(count: str) -> Source:
    """So many phantoms; DataError if they are too few or too many."""
    number = int(count[:20])  # more digits are too many, too
    if not MIN_PHANTOMS <= number <= MAX_PHANTOMS:
        allowed = f"{MIN_PHANTOMS}, the least that fill every split with both classes, to {MAX_PHANTOMS:,}"
        raise DataError(f"phantom:{count[:20]} is not possible", f"allowed: {allowed}")
    return Source("phantom", Path(), tuple(starmap(Item, phantom.items(number))))


def list_source(source: str) -> tuple[Path, list[Item], bool]:
    """The folder that paths start from, an item for each file, and whether they are from a CSV."""
    if not source.strip() or "\0" in source:
        raise DataError("SOURCE is empty, or no name of a file", f"give {SOURCES}")
    path = Path(source)
    try:
        with suppress(RuntimeError):  # ~somebody who is not known here
            path = path.expanduser()
        is_csv = path.is_file() and path.suffix.lower() == ".csv"
        if not is_csv and not path.is_dir():
            raise DataError(f"no images at {source!r}", f"give {SOURCES}")
        root, items = (path.parent.resolve(), read_csv(path)) if is_csv else folder_source.read_folder(path)
    except OSError as error:  # its file name may name a patient
        is_refused = isinstance(error, PermissionError)
        hint = f"see which: find {quote(source)} ! -readable" if is_refused else f"give {SOURCES}"
        raise DataError(f"{source} cannot be listed to the end: {error.strerror}", hint) from error
    if not items:
        raise DataError(f"{source} holds no files", f"give {SOURCES}")
    return root, items, is_csv


def _is_dicom(root: Path, item: Item) -> bool:
    """By its suffix; many DICOM files have none, or a part of a UID in its place, so then by its content."""
    suffix = f".{item.key.rpartition('.')[2]}".lower()
    if suffix in IMAGE_SUFFIXES:
        return False
    return suffix in dicom.SUFFIXES or dicom.is_dicom(root / unescape(item.key))


def with_own_patient(root: Path, item: Item) -> Item:
    """An item of the patient that its DICOM file names."""
    patient = dicom.patient_of(root / unescape(item.key))[:MAX_PATIENT_CHARS]  # no id is longer
    return replace(item, group=clean_patient(patient))


def notes_on_patients(items: Iterable[Item]) -> Iterator[str]:
    """A warning of ids that may mean the same patient."""
    patients = {item.group for item in items} - {""}
    alike = Counter(map(folded_patient, patients))
    count = sum(number for number in alike.values() if number > 1)
    if count:
        what = "differ from another one in case or leading zeros only, and count as patients of their own"
        yield f"{count} of {len(patients)} patient ids {what}: write them alike if they mean the same"


def notes_on_strays(items: list[Item]) -> Iterator[str]:
    """A warning of DICOM files that may belong to one patient without saying so."""
    strays = sum(not item.group for item in items)
    if strays:
        yield f"{strays} of {len(items)} DICOM files name no patient: each counts as one of its own"


def notes_on_classes(items: Iterable[Item], naming: Naming) -> Iterator[str]:
    """What has been done about the folders of DICOM files, which often name patients."""
    count = len({item.label for item in items} - {NO_LABEL})
    if count and naming.label_from:
        yield (
            f"the names of {count} folders go into the shards as class names (--label-from folder): "
            "make sure that none of them names a patient"
        )
    elif count:
        yield (
            f"the names of {count} folders of DICOM files are not used, as they may name patients: all "
            f"images are {NO_LABEL}. Name the classes in a CSV (path,label,split,patient); or, if the names "
            "of the folders may go into the shards: python jobs/pack.py SOURCE OUT --label-from folder"
        )


def hidden(kind: Kind, hashed: Callable[[str], str], item: Item) -> Item:
    """An item under salted hashes: neither its name nor its patient's goes into the shards, or the plan."""
    group = f"{'dicom' if kind == 'dicom' else 'patient'}-{hashed(item.group)}" if item.group else ""
    return replace(item, key=hidden_key(kind, hashed, item), group=group)


def hidden_key(kind: Kind, hashed: Callable[[str], str], item: Item) -> str:
    return f"{kind}/{hashed(item.key)}"


def hasher(out: Path) -> Callable[[str], str]:
    """Salted hashes as the shards in `out` have them."""
    salt = salt_of(out)
    return lambda text: hashlib.blake2b(text.encode(), key=salt, digest_size=12).hexdigest()


def find_paths(source: str, root: Path, kind: Kind, out: Path) -> dict[str, str]:
    """Escaped path below `root`, by hidden key, of everything in the source that `out` holds the plan of."""
    table = root / Path(source).name  # `source` itself may start from another folder than this process
    is_csv = table.suffix.lower() == ".csv" and table.is_file()
    _, items, _ = list_source(str(table if is_csv else root))
    return {hidden_key(kind, hasher(out), item): item.key for item in items}


@functools.cache
def salt_of(out: Path) -> bytes:
    """The secret salt of the shards in `out`; where none is kept yet, one for this process."""
    path = out / SALT_FILE
    return path.read_bytes() if path.exists() else secrets.token_bytes(32)


def keep_salt(out: Path) -> bool:
    """Keep this process's salt in `out`, unless there is one; whether they are the same."""
    path = out / SALT_FILE
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        part = temporary_path(path)
        part.touch(mode=0o600)
        part.write_bytes(salt_of(out))
        with suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
    return path.read_bytes() == salt_of(out)
