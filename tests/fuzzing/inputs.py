"""What every kind of input shares: a case, what can be wrong with the answer to it, and damage of all sorts."""

import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from doors import Result, run_door
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tiny import REPOSITORY

from data_prep.errors import ToolkitError
from data_prep.image import BadImageError
from data_prep.json_records import Word


class Fault(Word):
    """What can be wrong with the answer to an input."""

    TRACEBACK = "traceback"
    """An exception that nobody has turned into a clear line."""
    HANG = "hang"
    EXIT_CODE = "wrong exit code"
    CONTROL = "control characters"
    """That a terminal could take for a command, or show in another order."""
    ACCEPTED = "silent acceptance"
    """What was damaged or of a wrong type is used as if it were not."""
    DEATH = "death"
    """Of the process, or of its memory limit."""


class Finding(Exception):
    """The answer to an input is wrong."""

    def __init__(self, fault: Fault, place: str, report: str = "") -> None:
        """`place` tells findings apart; `report` is all that is known."""
        super().__init__(fault, place, report)
        self.fault, self.place, self.report = fault, place, report

    def __str__(self) -> str:
        return f"{self.fault}: {self.place}"


@dataclass(frozen=True)
class Case:
    """One input: a file of that name (it says where the file goes) and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Bench:
    """How inputs of one kind are made, and played: whatever `play` raises but an error of ours is a finding."""

    cases: SearchStrategy[Case]
    play: Callable[[Case], None]


def judge(bench: Bench, case: Case) -> Finding | None:
    """Play a case; what is wrong with the answer, if anything."""
    try:
        bench.play(case)
    except Finding as finding:
        return finding
    except (ToolkitError, BadImageError):
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return traceback_at(traceback.format_exc(), type(error).__name__)
    return None


def traceback_at(report: str, kind: str = "") -> Finding:
    """A traceback, by the exception and where in the toolkit's own rooms it comes from."""
    rooms = rf'File "{re.escape(str(REPOSITORY))}/((?:data_prep|vae|slurm|jobs)/[^"]+)", line (\d+)'
    places = [":".join(found) for found in re.findall(rooms, report)]
    kind = kind or re.findall(r"^(?:\w+\.)*(\w+)(?:: |$)", report, re.MULTILINE)[-1]
    return Finding(Fault.TRACEBACK, f"{places[-1] if places else 'outside'}: {kind}", report)


# --- doors ---------------------------------------------------------------------------------------


# No letter, and nothing that makes a table.
ODD_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def knock(door: str, *argv: str | Path, cwd: Path = REPOSITORY) -> Result:
    """Run a front door in this process; a Finding if it ends in another way than a door may."""
    with mock.patch("os.kill", refuse_signal), mock.patch("time.sleep", end_of_patience), without_slurm():
        result = run_door(door, *argv, cwd=cwd)
    if "Traceback (most recent call last)" in result.stderr:
        raise traceback_at(result.stderr)
    try:
        result.stdout.encode()
    except UnicodeEncodeError as error:  # as printing it to a terminal would
        raise Finding(Fault.TRACEBACK, f"jobs/{door}.py prints what UTF-8 cannot hold", result.stdout) from error
    if odd := ODD_CHARACTER.search(result.stdout + result.stderr):
        report = (result.stdout + result.stderr)[max(0, odd.start() - 300) : odd.end() + 300]
        raise Finding(Fault.CONTROL, f"jobs/{door}.py prints {odd[0]!a}", report)
    if result.returncode not in (0, 1, 2):
        raise Finding(Fault.EXIT_CODE, f"jobs/{door}.py ends with {result.returncode}", result.stderr)
    return result


def refuse_signal(pid: int, number: int) -> NoReturn:
    """Nothing that is played here may end a process."""
    raise Finding(Fault.ACCEPTED, f"signal {number} to process {pid}, which an input has named")


def end_of_patience(seconds: float) -> NoReturn:
    """Where a command would wait and look again, its user leaves."""
    if not 0 <= seconds < 1 << 32:
        raise OverflowError(f"time.sleep({seconds})")
    raise KeyboardInterrupt


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In there, until the block ends."""
    home = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


def without_slurm() -> AbstractContextManager[object]:
    """No program can be started, SLURM's least of all."""
    return mock.patch.dict(os.environ, {"PATH": ""})


class Folder:
    """A template folder that can be played with, and put back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keep()

    def keep(self) -> None:
        """Remember it as it is now."""
        self.files = dict(self._read(self.path))

    @staticmethod
    def _read(path: Path) -> Iterator[tuple[str, bytes]]:
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield str(file.relative_to(path)), file.read_bytes()

    @contextmanager
    def holding(self, case: Case) -> Iterator[None]:
        """The folder with the case's file in it; afterwards it is what it was."""
        try:
            (self.path / case.name).write_bytes(case.content)
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put everything back."""
        now = dict(self._read(self.path))
        for name in now.keys() - self.files.keys():
            (self.path / name).unlink()
        for name, content in self.files.items():
            if now.get(name) != content:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes(content)


# --- damage to bytes -----------------------------------------------------------------------------

Edit = tuple[int, str, int]
ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
EDITS: SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.integers(0, 64) | st.integers(0, 1024) | st.integers(0, 1 << 24),
        st.sampled_from(("bit", "byte", "little", "big", "short", "cut", "drop", "repeat", "insert")),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=5,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """`content` after each of the edits: where (modulo its length), how, and with what."""
    data = bytearray(content)
    for where, how, value in edits:
        at = where % (len(data) or 1)
        number, length = ODD_NUMBERS[value % len(ODD_NUMBERS)], 1 + value % 64
        if how == "bit" and data:
            data[at] ^= 1 << value % 8
        elif how == "byte" and data:
            data[at] = value
        elif how in ("little", "big"):
            data[at : at + 4] = number.to_bytes(4, "little" if how == "little" else "big")
        elif how == "short":
            data[at : at + 2] = (number & 0xFFFF).to_bytes(2, "little" if value % 2 else "big")
        elif how == "cut" and value < 64:
            del data[at:]
        elif how == "drop":
            del data[at : at + length]
        elif how == "repeat":
            data[at:at] = data[at : at + length] * (1 + value % 3)
        elif how == "insert":
            data[at:at] = bytes([value]) * length
    return bytes(data)


def flipped(content: bytes) -> SearchStrategy[bytes]:
    """`content` with one bit the other way round."""
    return st.builds(lambda at, bit: edited(content, [(at, "bit", bit)]), st.integers(0, 1 << 24), st.integers(0, 7))


def damaged(content: bytes) -> SearchStrategy[bytes]:
    """`content` with a few edits, or one bit the other way round."""
    return st.builds(edited, st.just(content), EDITS) | flipped(content)


# --- damage to records ---------------------------------------------------------------------------

Keys = tuple[str | int, ...]
TEXTS = st.sampled_from(
    ("", "x", "../../outside", "/dev/null", "a\x00b", "\x1b[31mred\x1b[0m", "[/x]", "[red]A[/red]", "=1+1", "nan")
    + ("\udcff", "\u202e", "<script>", "9" * 400, "x" * 5000, "1e999", "None", "true", "{0}", "%s", "\n", "linear-s0")
)
NUMBERS = st.sampled_from((0, 1, -1, 0.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, 2**200, -(2**63), 1e308, 1e-320))
VALUES: SearchStrategy[Any] = TEXTS | NUMBERS | st.sampled_from((None, True, False, [], {}, [[]], ["x"], {"x": 1}))
RAW = st.sampled_from(
    (b"", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 50_000, b"\x00", b"null", b"NaN", b"1", b'"x"', b"\xff\xfe{\0")
    + (b"{}", b"[]", b'{"a":1}', b"\n\n", b"&a [*a]", b"a: &a [*a, *a]", b"- a", b"? {a: 1}\n: 2", b"!!python/name:os.system")
)


def keys_of(value: Any, above: Keys = ()) -> list[Keys]:
    """The way to every part of plain values, the whole included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(keys for key, part in parts for keys in keys_of(part, (*above, key)))]


def replaced(value: Any, keys: Keys, how: str, new: Any) -> Any:
    """A copy of plain values with one part set, dropped, or given one key more."""
    if not keys:
        return {**value, "fuzz": new} if how == "add" and isinstance(value, dict) else new
    parts = dict(value) if isinstance(value, dict) else list(value)
    if len(keys) == 1 and how == "drop":
        del parts[keys[0]]
    else:
        parts[keys[0]] = replaced(parts[keys[0]], keys[1:], how, new)
    return parts


def wrong_values(value: Any) -> SearchStrategy[Any]:
    """Copies of plain values with one or two parts that are odd, missing or too many."""
    change = st.tuples(st.sampled_from(keys_of(value)), st.sampled_from(("set", "set", "drop", "add")), VALUES)

    def apply(first: tuple[Keys, str, Any], second: tuple[Keys, str, Any] | None) -> Any:
        result = replaced(value, *first)
        if second is not None:
            try:
                result = replaced(result, *second)
            except (KeyError, IndexError, TypeError):
                pass  # the first has taken its place away
        return result

    return st.builds(apply, change, st.none() | change)


def wrong_json(content: bytes) -> SearchStrategy[bytes]:
    """A JSON file with odd values, with damaged bytes, or another file altogether."""
    odd = wrong_values(json.loads(content)).map(lambda value: json.dumps(value).encode())
    return odd | odd | damaged(content) | RAW


def wrong_lines(content: bytes) -> SearchStrategy[bytes]:
    """A JSON-lines file of which one line is so."""
    lines = content.splitlines()

    def with_line(number: int, line: bytes) -> bytes:
        return b"\n".join([*lines[:number], line, *lines[number + 1 :]]) + b"\n"

    one = st.integers(0, len(lines) - 1)
    return one.flatmap(lambda number: wrong_json(lines[number]).map(lambda line: with_line(number, line)))


def is_wrong(value: Any, template: Any, free: tuple[str, ...] = ()) -> bool:
    """Whether plain values have a part of another kind than their template, or one it does not know.

    Below the keys `free` any name may stand. A null, or a number for a number, may be right.
    """
    if isinstance(template, dict):
        if not isinstance(value, dict):
            return True
        return "fuzz" in value or any(
            is_wrong(value[key], part, free) for key, part in template.items() if key in value and key not in free
        )
    if isinstance(template, list):
        if not isinstance(value, list):
            return True
        return any(is_wrong(part, template[0], free) for part in value) if template else False
    if value is None or template is None:
        return False
    numbers = (bool, int, float)
    return isinstance(value, numbers) != isinstance(template, numbers) or isinstance(value, (dict, list))


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder, without what Python leaves behind."""
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))
