"""Typed records in JSON files: one strict reader and one writer for every room.

Whatever in a file is not ours (damaged, edited by hand, from a later version) is one line that names the
file, the field and what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from data_prep.errors import DamagedFile, ToolkitError
from data_prep.files import write_json

# How a byte of a path that is no UTF-8 stands in JSON; msgspec's own decoder refuses it.
ODD_BYTE = b"\\udc"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one JSON file, or one line of a JSON-lines file, holds."""

    IF_DAMAGED: ClassVar[str] = "restore it from a copy, or remove it: it is written anew when it is needed"
    """What a user does about a file that does not hold such a record."""


R = TypeVar("R", bound=Record)


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
        if ODD_BYTE in content:
            return msgspec.convert(json.loads(content), kind)
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, ToolkitError) as error:
        raise DamagedFile(f"{path} is damaged: {in_plain_words(error)}", kind.IF_DAMAGED) from error


def in_plain_words(error: Exception) -> str:
    """msgspec's message with the field first: `attempts[0].job: Expected str, got int`."""
    reason, _, field = str(error).replace("`", "").rpartition(" - at ")
    return f"{field.removeprefix('$').lstrip('.') or 'all of it'}: {reason}" if reason else field


def write_record(path: Path, record: Record) -> None:
    """Replace `path` by a record as indented JSON, atomically."""
    write_json(path, msgspec.to_builtins(record))
