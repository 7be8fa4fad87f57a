"""Files that outlive crashes: written under another name, fsynced, renamed; and their digests."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.errors import DataError

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
# Files that are made safe at once: a disk needs one round for them all.
FILES_AT_ONCE = 8
# What file systems without locks answer.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def temporary_path(path: Path) -> Path:
    """A hidden sibling of `path` that no other process on any node will pick."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")


def fsync_path(path: Path) -> None:
    """Push a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` in the end, also through a power cut; on error nothing changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(path)
    try:
        yield part
        fsync_path(part)
        part.replace(path)
        fsync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def for_each_file(work: Callable[..., object], *arguments: Iterable[Any]) -> None:
    """`map` for work that waits for the disk, some of it at once; raises the first error when all is done."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(work, *arguments))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically, making its folder if need be."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically."""
    write_text(path, as_json(value))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, and all else that keeps `path` from being written, into one clear line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}",
            "make room there, then run the same command again; it goes on where it stopped",
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def only_holder(path: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock file `path`; yields False if another process has held it for `wait_s` seconds.

    The system drops the lock when its holder ends, however it ends. Without locks there is only a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + wait_s
    with path.open("a") as file:
        while not (is_held := _lock(file, path)) and time.monotonic() < give_up:
            time.sleep(0.2)
        yield is_held


def _lock(file: IO[str], path: Path) -> bool:
    """Lock a file without waiting; False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s has no file locks; take care to start nothing twice", path.parent)
    return True
