"""Folders as items: split and class are named by the folders, a patient perhaps by the file."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

from data_prep.errors import DataError
from data_prep.items import NO_LABEL, SPLIT_NAMES, BadNameError, Item, clean_label, escape

IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
# A folder that links lead to more often than this is part of a maze of links, not of a data set.
MAX_VISITS = 8

# What Linux shows of itself as files: without end, and nothing in it is an image.
SYSTEM_KINDS = {
    *("proc", "sysfs", "devtmpfs", "devpts", "mqueue", "configfs"),
    *("cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "pstore", "bpf"),
}

# Kermany set: bacterial and viral pneumonia are numbered separately, so the number alone is no patient.
PNEUMONIA_NAME = re.compile(r"person(\d+)_(bacteria|virus)_")
NORMAL_NAME = re.compile(r"(NORMAL2-IM|IM)-(\d+)")


def images_root(folder: Path) -> Path:
    """The folder that paths start from: the Kaggle archive nests its splits in it, once or twice."""
    root = folder.resolve()
    while not split_folders(root) and (root / "chest_xray").is_dir():
        root = root / "chest_xray"
    return root


def split_folders(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name in SPLIT_NAMES]


def find_files(root: Path) -> list[str]:
    """Paths below `root` of every file in it, or in its split folders if it has some, sorted.

    Beside splits there may be a second copy of everything. Raises DataError for what no walk comes through.
    """
    visits: Counter[tuple[int, int]] = Counter()
    system = system_devices()
    found = [_walk(root, top, visits, system) for top in split_folders(root) or [""]]
    return sorted(chain.from_iterable(found))


def _walk(root: Path, top: str, visits: Counter[tuple[int, int]], system: set[int]) -> Iterator[str]:
    """Every file below, hidden ones left out; linked folders are entered, but never in a circle.

    Errors name no folder, as it may be named after a patient.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        status = (root / folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        visits[here] += 1
        if visits[here] > MAX_VISITS:
            maze = f"links in {root} lead to one folder more than {MAX_VISITS} times"
            raise DataError(maze, "name the files in a CSV: path,label,split")
        if status.st_dev in system:
            raise DataError(
                f"{root} holds files that the system makes up (as /proc)", "give the images' folder"
            )
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in IGNORED:
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_folder(entry):
                    waiting.append((path, above | {here}))
                else:
                    yield path


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; the packer will say so
        return False


def system_devices() -> set[int]:
    """Numbers of the devices whose files the system makes up; none where it does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    devices = set()
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if kind.split()[0] in SYSTEM_KINDS:
            devices.add(os.makedev(*map(int, mount.split()[2].split(":"))))
    return devices


def read_folder(folder: Path) -> tuple[Path, list[Item]]:
    """The folder that paths start from, and an item for each file."""
    root = images_root(folder)
    return root, list(map(partial(file_item, root), find_files(root)))


def file_item(root: Path, path: str) -> Item:
    """An item whose split and class are named by its folders."""
    *folders, name = path.split("/")
    split = SPLIT_NAMES.get(folders[0], "") if folders else ""
    label = next(iter(folders[1:] if split else folders), NO_LABEL)  # deeper ones are patients, studies, ...
    try:
        return Item(escape(path), clean_label(label), split, kermany_patient(name))
    except BadNameError as error:
        raise DataError(
            f"a file in {root} cannot be packed: {error}", "give the folder a shorter name"
        ) from error


def kermany_patient(name: str) -> str:
    """The patient that a file name of the Kermany set stands for, as (kind, number); else nothing."""
    if match := PNEUMONIA_NAME.match(name):
        return f"{match[2]}-{int(match[1])}"
    if match := NORMAL_NAME.match(name):
        return f"{match[1]}-{int(match[2])}"
    return ""


def refuse_splits_in_classes(root: Path, items: Iterable[Item], may_name: bool) -> None:
    """Raise DataError if a folder that would be a class holds train or test: its splits would be lost."""
    inner: dict[str, None] = {}
    for folder in dict.fromkeys(item.key.rpartition("/")[0] for item in items):
        folders = folder.split("/")
        below = 2 if folders[0] in SPLIT_NAMES else 1  # the class
        depth = next((i for i in range(below, len(folders)) if folders[i] in ("train", "test")), None)
        if depth:
            inner[str(PurePosixPath(root, *folders[:depth]))] = None
    if inner:
        which = f"{' or '.join(list(inner)[:4])}" if may_name else f"one of the {len(inner)} folders that do"
        raise DataError(
            f"{root} holds folders with a split of their own, which would be taken for classes",
            f"did you mean {which}? To pack several, or classes "
            "that each have a train and a test folder, list the files in a CSV: path,label,split",
        )
