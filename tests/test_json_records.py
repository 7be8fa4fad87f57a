"""data_prep/json_records.py: what is written comes back; what is not ours is one line of advice."""

from pathlib import Path

import msgspec
import pytest

from data_prep.errors import DamagedFile
from data_prep.json_records import Record, Word, append_line, read_lines, read_record, write_record


class Colour(Word):
    RED = "red"


class Thing(Record, frozen=True):
    IF_DAMAGED = "buy a new one"

    size: int
    colour: Colour = Colour.RED
    parts: tuple[dict[str, int], ...] = ()


DECODER: msgspec.json.Decoder[Thing] = msgspec.json.Decoder(Thing)


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    assert read_record(path, Thing) is None
    write_record(path, Thing(3, Colour.RED, ({"a": 1},)))
    assert read_record(path, Thing) == Thing(3, Colour.RED, ({"a": 1},))
    assert f"{Colour.RED}" == "red"
    assert path.read_text().splitlines()[1] == '  "size": 3,'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"{}", "Object missing required field size"),
        (b'{"size": "3"}', "size: Expected int, got str"),
        (b'{"size": 3, "weight": 1}', "Object contains unknown field weight"),
        (b'{"size": 3, "colour": "blue"}', "colour: Invalid enum value 'blue'"),
        (b'{"size": 3, "parts": [{"a": "b"}]}', "parts[0][...]: Expected int, got str"),
        (b'\xef\xbb\xbf{"size": 3}', "JSON is malformed"),
        (b'{"size": 3, "colour": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 100_000, "Expected object, got array"),
    ],
)
def test_what_is_not_ours_names_file_field_and_cure(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        read_record(path, Thing)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert reason in str(caught.value)
    assert caught.value.hint == "buy a new one"


def test_a_folder_in_place_of_a_file_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="cannot be read: Is a directory"):
        read_record(tmp_path, Thing)


def test_lines_are_added_after_what_a_killed_writer_has_left(tmp_path: Path) -> None:
    path = tmp_path / "things.jsonl"
    assert read_lines(path, DECODER) == []
    append_line(path, Thing(1))
    with path.open("ab") as file:
        file.write(b'{"si')
    assert read_lines(path, DECODER) == [Thing(1)]
    append_line(path, Thing(2))
    assert read_lines(path, DECODER) == [Thing(1), Thing(2)]
    path.write_bytes(b'{"si')
    append_line(path, Thing(3))
    assert read_lines(path, DECODER) == [Thing(3)]


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "things.jsonl"
    path.write_bytes(b'{"size":1}\n{"size":null}\n')
    with pytest.raises(DamagedFile, match=r"things\.jsonl, line 2, is damaged: size: Expected int, got null"):
        read_lines(path, DECODER)
