"""One image to pack before anything is read of it: its name, class, split and patient, as clean text."""

import functools
import os
import re
import unicodedata
from typing import Annotated, Literal

import msgspec

from data_prep.json_records import Record

Kind = Literal["files", "dicom", "phantom"]
Utf8 = Annotated[str, msgspec.Meta(pattern="^[^\ud800-\udfff]*$")]  # what UTF-8 can hold

# Folder names that mean a split; `valid` and `validation` are common for `val`.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NO_LABEL = "unlabelled"

# A shard keeps each column as wide as its longest text.
MAX_LABEL_CHARS = 128
MAX_PATIENT_CHARS = 256
MAX_PATH_CHARS = 4096
# Kinds of characters that nobody sees: two ids that differ by one look the same.
UNSEEN = ("Cf", "Cc")


class Item(Record, frozen=True):
    """One image to pack, before anything is read of it."""

    key: Utf8
    """Printable name, unique in the source; see `escape`. A salted hash where names are hidden."""
    label: Utf8
    """Class name."""
    split: str
    """train, val or test as the source gives it; empty if it gives none."""
    group: Utf8
    """The patient: images of one group never land in two splits. Empty if nobody knows."""
    path: str = ""
    """Escaped path below the source's root, where it is not the key; never written where names are hidden."""


class BadNameError(Exception):
    """A name, class, split or patient cannot be used; the message says why and quotes nothing."""


def escape(name: str) -> str:
    """A file name as printable text: bytes that are not become \\xNN, so every name survives a round trip."""
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(char if char.isprintable() and char != "\\" else _hex(char) for char in name)


def _hex(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def unescape(key: str) -> str:
    """The file name that `escape` made printable."""
    if "\\" not in key:
        return key
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), key.encode())
    return os.fsdecode(raw)


def clean_path(text: str) -> str:
    """A path as a key; BadNameError if no file can have it."""
    if not text or "\0" in text or len(text) > MAX_PATH_CHARS:
        raise BadNameError(f"its path is empty, longer than {MAX_PATH_CHARS} characters or holds a NUL")
    return escape(text)


@functools.lru_cache(1 << 16)
def clean_label(text: str) -> str:
    """A class name, `unlabelled` if it is empty; BadNameError if it is too long for a name."""
    if len(text) > MAX_LABEL_CHARS:
        raise BadNameError(f"its class has a name of more than {MAX_LABEL_CHARS} characters")
    return escape(text.strip()) or NO_LABEL


@functools.lru_cache(1 << 16)
def clean_split(text: str) -> str:
    """train, val, test or nothing; BadNameError for another word."""
    word = text.strip().lower()
    if word and word not in SPLIT_NAMES:
        raise BadNameError("its split is not train, val, test or empty")
    return SPLIT_NAMES.get(word, "")


@functools.lru_cache(1 << 16)
def clean_patient(text: str) -> str:
    """A patient's id, the same for all ways to write what looks alike; BadNameError if it is too long."""
    if len(text) > MAX_PATIENT_CHARS:
        raise BadNameError(f"its patient's id has more than {MAX_PATIENT_CHARS} characters")
    if not (text.isascii() and text.isprintable()):
        text = "".join(char for char in unicodedata.normalize("NFKC", text) if not _is_unseen(char))
    return escape(text.strip())


def _is_unseen(char: str) -> bool:
    return unicodedata.category(char) in UNSEEN


def folded_patient(patient: str) -> str:
    """What an id has in common with those that differ from it in case or leading zeros only."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", patient.casefold())
