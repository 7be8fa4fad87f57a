"""Where images come from: folders, a CSV, DICOM files or phantoms, as one list of items with a patient each.

Listing reads names (and, for DICOM, headers), never pixels, so that it is quick on a login node.
"""

import csv
import functools
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from data_prep import phantom
from data_prep.errors import DataError
from data_prep.files import temporary_path
from data_prep.image import SUFFIXES
from data_prep.json_records import Record

Kind = Literal["files", "dicom", "phantom"]
Utf8 = Annotated[str, msgspec.Meta(pattern="^[^\ud800-\udfff]*$")]  # what UTF-8 can hold

PHANTOM = re.compile(r"phantom:(\d+)")
# Folder names that mean a split; `valid` and `validation` are common for `val`.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGE_SUFFIXES = {*chain.from_iterable(SUFFIXES.values())}
IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
NO_LABEL = "unlabelled"
SALT_FILE = ".patient-salt"

# Kermany set: bacterial and viral pneumonia are numbered separately, so the number alone is no patient.
PNEUMONIA_NAME = re.compile(r"person(\d+)_(bacteria|virus)_")
NORMAL_NAME = re.compile(r"(NORMAL2-IM|IM)-(\d+)")

SOURCES = "a folder of class folders (also split into train/val/test), a CSV, a DICOM folder, or phantom:N"


class Item(Record, frozen=True):
    """One image to pack, before anything is read of it."""

    key: Utf8
    """Printable name, unique in the source; see `escape`."""
    label: Utf8
    """Class name."""
    split: str
    """train, val or test as the source gives it; empty if it gives none."""
    group: Utf8
    """The patient: images of one group never land in two splits. Empty if nobody knows."""
    path: str = ""
    """Escaped path below the source's root, where it is not the key."""


@dataclass(frozen=True)
class Source:
    """A kind of source, the folder its paths start from, and what is in it."""

    kind: Kind
    root: Path
    items: tuple[Item, ...]


def escape(name: str) -> str:
    """A file name as printable text: bytes that are not become \\xNN, so every name survives a round trip."""
    return "".join(char if char.isprintable() and char != "\\" else _hex(char) for char in name)


def _hex(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def unescape(key: str) -> str:
    """The file name that `escape` made printable."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), key.encode())
    return os.fsdecode(raw)


def find_items(source: str, out: Path, may_write: bool = True) -> Source:
    """List everything in `source`, a folder, CSV, DICOM folder or `phantom:N`; DataError if there is nothing.

    A DICOM source keeps its secret salt in `out`, the folder of the shards, if it `may_write` there; else
    `keep_salt` must follow before anything is made of the names of DICOM files.
    """
    if match := PHANTOM.fullmatch(source):
        count = int(match[1])
        if count < 16:
            least = "16 phantoms are the least that fill every split with both classes"
            raise DataError(f"phantom:{count} is too small", least)
        return Source("phantom", Path(), tuple(starmap(Item, phantom.items(count))))
    path = Path(source).expanduser()
    try:
        root, items = _list(path)
    except (OSError, csv.Error) as error:
        raise DataError(f"{source} cannot be listed: {error}", f"give {SOURCES}") from error
    if not items:
        raise DataError(f"{source} holds no files", f"give {SOURCES}")
    if any(_is_dicom(root / unescape(item.key)) for item in items):
        if may_write and not keep_salt(out):  # another task of the same pack was first
            salt_of.cache_clear()
        return Source("dicom", root, tuple(_without_names(root, items, salt_of(out), path.is_file())))
    return Source("files", root, tuple(items))


def _list(path: Path) -> tuple[Path, list[Item]]:
    """The folder that paths start from, and the items, of a CSV or a folder."""
    if path.is_file() and path.suffix.lower() == ".csv":
        return path.parent.resolve(), list(_csv_items(path))
    if not path.is_dir():
        raise DataError(f"no images at {str(path)!r}", f"give {SOURCES}")
    root = path.resolve()
    while not _split_folders(root) and (root / "chest_xray").is_dir():
        root = root / "chest_xray"  # the Kaggle archive nests its splits in it, once or twice
    tops = _split_folders(root) or [root]  # beside splits there may be a second copy of everything
    files = sorted(chain.from_iterable(map(_walk, tops)))
    refuse_splits_in_classes(root, files)
    return root, [_file_item(root, file) for file in files]


def _split_folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.name in SPLIT_NAMES]


def refuse_splits_in_classes(root: Path, files: Iterable[Path]) -> None:
    """Raise DataError if a folder that would be a class holds train or test: its splits would be lost."""
    inner: dict[Path, None] = {}
    for file in files:
        folders = file.relative_to(root).parts[:-1]
        below = 2 if folders and folders[0] in SPLIT_NAMES else 1  # the class
        depth = next((i for i in range(below, len(folders)) if folders[i] in ("train", "test")), None)
        if depth:
            inner[root.joinpath(*folders[:depth])] = None
    if inner:
        raise DataError(
            f"{root} holds folders with a split of their own, which would be taken for classes",
            f"did you mean {' or '.join(map(str, list(inner)[:4]))}? To pack several, or classes "
            "that each have a train and a test folder, list the files in a CSV: path,label,split",
        )


def _walk(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Every file below, hidden ones left out; linked folders are entered, but never in a circle."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in IGNORED:
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        else:
            yield path


def _file_item(root: Path, path: Path) -> Item:
    """An item whose split and class are named by its folders."""
    *folders, _ = path.relative_to(root).parts
    split = SPLIT_NAMES.get(folders[0], "") if folders else ""
    label = next(iter(folders[1:] if split else folders), NO_LABEL)  # deeper ones are patients, studies, ...
    return Item(escape(str(path.relative_to(root))), escape(label), split, kermany_patient(path.name))


def kermany_patient(name: str) -> str:
    """The patient that a file name of the Kermany set stands for, as (kind, number); else nothing."""
    if match := PNEUMONIA_NAME.match(name):
        return f"{match[2]}-{int(match[1])}"
    if match := NORMAL_NAME.match(name):
        return f"{match[1]}-{int(match[2])}"
    return ""


def _csv_items(path: Path) -> Iterator[Item]:
    """Rows of `path[,label][,split][,patient]`; paths are relative to the CSV's folder."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        if "path" not in columns or not columns <= {"path", "label", "split", "patient"}:
            raise DataError(f"{path} has columns {sorted(columns)}", "allowed: path, label, split, patient")
        seen = set()
        for number, row in enumerate(rows, start=2):
            split = (row.get("split") or "").strip().lower()
            if not row["path"] or (split and split not in SPLIT_NAMES) or row["path"] in seen:
                raise DataError(
                    f"{path}, line {number}: path {row['path']!r}, split {split!r}",
                    "each line needs a path of its own; splits are train, val, test or empty",
                )
            seen.add(row["path"])
            label = escape((row.get("label") or "").strip()) or NO_LABEL
            patient = escape(row.get("patient") or "")
            yield Item(escape(row["path"]), label, SPLIT_NAMES.get(split, ""), patient)


def _is_dicom(path: Path) -> bool:
    """By its suffix; many DICOM files have none, or a part of a UID in its place, so then by its content."""
    suffix = path.suffix.lower()
    if suffix in (".dcm", ".dicom"):
        return True
    if suffix in IMAGE_SUFFIXES or not path.is_file():
        return False
    with suppress(OSError), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def _without_names(root: Path, items: list[Item], salt: bytes, trust_groups: bool) -> Iterator[Item]:
    """Items under salted hashes: of DICOM files neither names nor patient ids go into the shards."""
    import_pydicom()

    def hashed(text: str) -> str:
        return hashlib.blake2b(text.encode(), key=salt, digest_size=12).hexdigest()

    for item in items:  # the patient is the one in the file, unless a CSV names another
        patient = (trust_groups and item.group) or _dicom_patient(root / unescape(item.key))
        group = f"dicom-{hashed(patient)}" if patient else ""
        yield Item(f"dicom/{hashed(item.key)}", item.label, item.split, group, item.key)


def import_pydicom() -> None:
    """Raise DataError, with what to install, unless DICOM files can be read."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        install = "in the repository: pip install -e '.[dicom]'"
        raise DataError("DICOM files need the `dicom` extra", install) from error


def _dicom_patient(path: Path) -> str:
    import pydicom

    if not path.is_file():  # a pipe would be waited for
        return ""
    with suppress(Exception):  # whatever is wrong with it, the packer will say so and quarantine it
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "")
    return ""


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
