"""Typed records in JSON files: one strict reader and one writer for every room.

Whatever in a file is not ours (damaged, edited by hand, from a later version) is one line that names the
file, the field and what to do.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from data_prep.errors import DamagedFile
from data_prep.files import write_text


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one JSON file, or one line of a JSON-lines file, holds."""

    IF_DAMAGED: ClassVar[str] = "restore it from a copy, or remove it: it is written anew when it is needed"
    """What a user does about a file that does not hold such a record."""


class Word(str, enum.Enum):
    """One of a few words, written and read as that word."""

    def __str__(self) -> str:
        return str(self.value)


R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record in a JSON file; None if there is no such file.

    Raises:
        DamagedFile: it holds anything else; names the file, the field and what to do.
    """
    content = read_bytes(path)
    return None if content is None else parse_record(content, kind, path)


def read_bytes(path: Path) -> bytes | None:
    """A file's bytes; None if there is no such file.

    Raises:
        DamagedFile: it is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}", "see who may read it") from error


def parse_record(content: bytes, kind: type[R], path: Path) -> R:
    """A record from JSON that comes from the file `path`.

    Raises:
        DamagedFile: as `read_record`.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFile(
            f"{path} is damaged: {in_plain_words(error)}", getattr(kind, "IF_DAMAGED", Record.IF_DAMAGED)
        ) from error


def in_plain_words(error: Exception) -> str:
    """msgspec's message with the field first: `attempts[0].job: Expected str, got int`."""
    reason, _, field = str(error).replace("`", "").rpartition(" - at ")
    return f"{field.removeprefix('$').lstrip('.') or 'all of it'}: {reason}" if reason else field


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Replace `path` by a record as indented JSON, atomically."""
    write_text(path, msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n")


def read_lines(path: Path, decoder: msgspec.json.Decoder[T]) -> list[T]:
    """The records of a JSON-lines file, oldest first; none if there is no such file.

    A half-written last line is left out.

    Raises:
        DamagedFile: a line holds anything else; names the line, the field and what to do.
    """
    lines = (read_bytes(path) or b"").splitlines(keepends=True)
    return [parse_line(line, decoder, path, number) for number, line in enumerate(lines, 1) if is_whole(line)]


def is_whole(line: bytes) -> bool:
    """Whether the writer of a line was not interrupted."""
    return line.endswith(b"\n")


def parse_line(line: bytes, decoder: msgspec.json.Decoder[T], path: Path, number: int | None = None) -> T:
    """A record from one line of a JSON-lines file.

    Raises:
        DamagedFile: as `read_lines`.
    """
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        where = f"{path}, line {number}," if number else f"{path}"
        raise DamagedFile(f"{where} is damaged: {in_plain_words(error)}", "remove that line") from error


def append_line(path: Path, record: Record) -> None:
    """Add a record to a JSON-lines file; a kill leaves at most half a line, which readers leave out."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")
