"""Typed records in JSON files: one strict reader and one writer for every room.

Whatever in a file is not ours (damaged, edited by hand, from a later version) is a DamagedFile: one line that
names the file, the field and what to do.
"""

import enum
import json
import os
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
from msgspec.json import Decoder

from data_prep.errors import DamagedFile, ToolkitError
from data_prep.files import as_json, write_text

# How a byte of a path that is no UTF-8 stands in JSON; msgspec's own decoder refuses it.
ODD_BYTE = b"\\udc"

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one JSON file, or one line of a JSON-lines file, holds."""

    IF_DAMAGED: ClassVar[str] = "restore it from a copy, or remove it: it is written anew when it is needed"
    """What a user does about a file that does not hold such a record."""


class Word(str, enum.Enum):
    """One of a few words, written and read as that word."""

    def __str__(self) -> str:
        return str(self.value)


def read_record(path: Path, kind: type[T]) -> T | None:
    """The record in a JSON file; None if there is no such file, DamagedFile if it holds anything else."""
    content, hint = read_bytes(path), getattr(kind, "IF_DAMAGED", Record.IF_DAMAGED)
    return None if content is None else decode(content, Decoder(kind), str(path), hint)


def read_bytes(path: Path) -> bytes | None:
    """A file's bytes; None if there is no such file, DamagedFile if it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}", "see who may read it") from error


def decode(content: bytes, decoder: Decoder[T], where: str, hint: str = "remove that line") -> T:
    """A record from its JSON; `where` and `hint` are for the DamagedFile if it is none."""
    try:
        if ODD_BYTE in content:
            return msgspec.convert(json.loads(content), decoder.type)
        return decoder.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError, ToolkitError) as error:
        raise DamagedFile(f"{where} is damaged: {in_plain_words(error)}", hint) from error


def in_plain_words(error: Exception) -> str:
    """msgspec's message with the field first: `attempts[0].job: Expected str, got int`."""
    reason, _, field = str(error).replace("`", "").rpartition(" - at ")
    name = field.removeprefix("$").lstrip(".")
    return f"{name}: {reason}" if reason and name else reason or field


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Replace `path` by a record as indented JSON, atomically."""
    write_text(path, to_text(record))


def to_text(record: msgspec.Struct) -> str:
    """What `write_record` writes."""
    return as_json(msgspec.to_builtins(record))


def read_lines(path: Path, decoder: Decoder[T]) -> list[T]:
    """The records of a JSON-lines file, oldest first; none without a file. Its DamagedFile names the line."""
    lines = whole_lines(read_bytes(path) or b"")
    return [decode(line, decoder, f"{path}, line {number},") for number, line in enumerate(lines, 1)]


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a JSON-lines file without a last one whose writer was interrupted."""
    return content[: content.rfind(b"\n") + 1].splitlines()


def encode_line(record: msgspec.Struct) -> bytes:
    """A record as one line."""
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:  # it holds an odd byte
        return json.dumps(msgspec.to_builtins(record)).encode() + b"\n"


def append_line(path: Path, record: msgspec.Struct) -> None:
    """Add a record to a JSON-lines file, after dropping half a line that a killed writer has left there."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(encode_line(record))
