"""A CSV of `path[,label][,split][,patient]` as items: every row whole, and every file named once."""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.errors import DataError
from data_prep.items import (
    BadNameError,
    Item,
    clean_label,
    clean_path,
    clean_patient,
    clean_split,
    unescape,
)

COLUMNS = ("path", "label", "split", "patient")
ALLOWED = f"allowed: {', '.join(COLUMNS)}, each once; path is needed"


def read_csv(path: Path) -> list[Item]:
    """The items of a CSV, whose paths start from its folder.

    DataError with the number of the line for anything that cannot be meant; nothing of the line is quoted, as
    it may name a patient.
    """
    rows = rows_of(path)
    _, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    refuse_columns(path, header)
    places = [header.index(name) if name in header else -1 for name in COLUMNS]
    items = []
    for line, cells in rows:
        if len(cells) != len(header):
            hint = 'put a cell with a comma into quotes: "a, b"'
            raise DataError(f"{path}, line {line}: {len(cells)} cells under {len(header)} columns", hint)
        cells.append("")  # at -1, of the columns that are not there
        name, label, split, patient = [cells[place] for place in places]
        try:
            items.append(
                Item(clean_path(name), clean_label(label), clean_split(split), clean_patient(patient))
            )
        except BadNameError as error:
            raise DataError(f"{path}, line {line}: {error}", "correct that line") from error
    refuse_second_names(path, items)
    return items


def rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank; DataError for a quote that goes on behind its line."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file, strict=True)
        line = 1
        try:
            for cells in rows:
                if rows.line_num != line:
                    raise csv.Error("several lines are one row")
                if cells:
                    yield line, cells
                line = rows.line_num + 1
        except csv.Error as error:
            reason = "a quote that opens there does not end there" if rows.line_num > line else error
            raise DataError(
                f"{path}, line {line}: {reason}", "a row and its quotes end on one line"
            ) from error


def refuse_columns(path: Path, header: list[str]) -> None:
    """Raise DataError unless the first line names the columns."""
    odd = [number for number, name in enumerate(header, 1) if name not in COLUMNS]
    doubled = [name for name in COLUMNS if header.count(name) > 1]
    if odd:
        raise DataError(f"{path}, line 1: column {odd[0]} has another name", ALLOWED)
    if doubled:
        raise DataError(f"{path}, line 1: there are two columns {doubled[0]}", ALLOWED)
    if "path" not in header:
        raise DataError(f"{path}, line 1: there is no column path", ALLOWED)


def refuse_second_names(path: Path, items: list[Item]) -> None:
    """Raise DataError if two lines name one file, be it in other words or through links."""
    first: dict[str, int] = {}
    for number, name in enumerate(real_names(path.parent.resolve(), (unescape(item.key) for item in items))):
        before = first.setdefault(name, number)
        if before != number:
            lines = [line for line, _ in rows_of(path)][1:]
            raise DataError(
                f"{path}: lines {lines[before]} and {lines[number]} name the same file",
                "keep one of the two: an image counted twice may stand in two splits",
            )


def real_names(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Each path without dots and links, relative to `root` where it lies below.

    Asks the file system once a folder, not once a file: that is what a million rows can afford.
    """
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    for name in names:
        folder, file = os.path.split(name)
        if folder not in folders:
            folders[folder] = _look_into(root / folder)
        real, links = folders[folder]
        if file in links or file in ("", ".", ".."):
            yield _below(root, os.path.realpath(root / name))
        elif real == (f"{root}/{folder}" if folder else str(root)):
            yield name
        else:
            yield _below(root, f"{real}/{file}")


def _look_into(folder: Path) -> tuple[str, frozenset[str]]:
    """A folder without links in its path, and the links in it; none if it cannot be read."""
    real = os.path.realpath(folder)
    try:
        with os.scandir(real) as entries:
            return real, frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:  # the packer will say so of each file
        return real, frozenset()


def _below(root: Path, path: str) -> str:
    return path.removeprefix(f"{root}/")
