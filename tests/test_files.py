"""Atomic files: the old one or the new one, never half of one."""

import hashlib
from pathlib import Path

import pytest

from data_prep.files import replacing, sha256_file, write_json, write_text


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as part:
            part.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_the_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as part:
        part.write_text("new")
        assert not path.exists()
        assert part.name.startswith(".")
    assert path.read_text() == "new"


def test_json_makes_its_folder_and_survives_odd_names(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"name": "\udc80 é"})
    assert (tmp_path / "a" / "b.json").read_text().isascii()


def test_digest_is_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
