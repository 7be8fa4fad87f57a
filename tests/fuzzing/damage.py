"""Damage of all sorts: to bytes, and to the values in a record."""

import json
from itertools import chain, product
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Edit = tuple[int, int | None, bytes]  # where, how many bytes are taken out (as many as come), what comes
Keys = tuple[str | int, ...]

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SIZES: tuple[int, ...] = (2, 4)
ORDERS: tuple[Literal["big", "little"], ...] = ("big", "little")
WORDS = [(n % 256**size).to_bytes(size, order) for n, size, order in product(NUMBERS, SIZES, ORDERS)]
BLOCKS = [byte * count for byte, count in product((b"\0", b"\xff", b"[", b"9", b"\n", b'"'), (1, 70, 5000))]
EDITS: SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.integers(0, 64) | st.integers(0, 1024) | st.integers(0, 1 << 24),
        st.sampled_from((None, None, None, 0, 0, 1, 4, 60, 1 << 30)),
        st.sampled_from(WORDS) | st.sampled_from(BLOCKS) | st.binary(max_size=3),
    ),
    min_size=1,
    max_size=5,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """`content` after these edits; places beyond its end begin anew."""
    for where, taken, put in edits:
        at = where % (len(content) + 1)
        content = content[:at] + put + content[at + (len(put) if taken is None else taken) :]
    return content


def flipped(content: bytes) -> SearchStrategy[bytes]:
    """`content` with one bit the other way round."""

    def flip(where: int, bit: int) -> bytes:
        at = where % len(content)
        return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

    return st.builds(flip, st.integers(0, 1 << 24), st.integers(0, 7))


def damaged(content: bytes) -> SearchStrategy[bytes]:
    """`content` with a few edits, or one bit the other way round."""
    return st.builds(edited, st.just(content), EDITS) | flipped(content)


# --- records -------------------------------------------------------------------------------------

PLAIN = "x ../../outside /dev/null [/x] [red]A[/red] =1+1 nan 1e999 true <script> {0} %s linear-s0"
TEXTS = [
    "",
    "\0",
    "\n",
    "\x1b[31mred",
    "\u202e",
    "\udcff",
    "x" * 5000,
    "9" * 400,
    "a b",
    "\ufeff",
    *PLAIN.split(),
]
AMOUNTS = [0, 1, -1, 0.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, 2**200, -(2**63), 1e308, 1e-320]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], ["x"], {"x": 1}, float("nan"), float("-inf")]
VALUES: SearchStrategy[Any] = st.sampled_from(TEXTS) | st.sampled_from(AMOUNTS) | st.sampled_from(OTHERS)
# Whole files that are none of ours.
STRANGERS = [
    b"",
    b"\0",
    b"null",
    b"1",
    b'"x"',
    b"{}",
    b"[]",
    b'{"a":1}',
    b"\n\n",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0",
]
STRANGERS += [b"[" * 100_000, b'{"a":' * 50_000, b"- " * 50_000, b"a: &a [*a, *a]", b"? {a: 1}\n: 2", b"- a"]


def keys_of(value: Any, above: Keys = ()) -> list[Keys]:
    """The way to every part of plain values, the whole included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *chain.from_iterable(keys_of(part, (*above, key)) for key, part in parts)]


def changed(value: Any, keys: Keys, how: str, new: Any) -> Any:
    """A copy of plain values with the part at `keys` set, dropped, or with a key more in it."""
    if not keys:
        return {**value, "fuzz": new} if how == "add" and isinstance(value, dict) else new
    parts: Any = dict(value) if isinstance(value, dict) else list(value)
    if how == "drop" and len(keys) == 1:
        del parts[keys[0]]
    else:
        parts[keys[0]] = changed(parts[keys[0]], keys[1:], how, new)
    return parts


def wrong_values(value: Any) -> SearchStrategy[Any]:
    """Copies of plain values with a part that is odd, missing or too much."""
    hows = st.sampled_from(("set", "set", "drop", "add"))
    return st.builds(changed, st.just(value), st.sampled_from(keys_of(value)), hows, VALUES)


def wrong_json(content: bytes) -> SearchStrategy[bytes]:
    """A JSON file with an odd part, with damaged bytes, or another file altogether."""
    odd = wrong_values(json.loads(content)).map(lambda value: json.dumps(value).encode())
    return odd | odd | damaged(content) | st.sampled_from(STRANGERS)


def wrong_lines(content: bytes) -> SearchStrategy[bytes]:
    """A JSON-lines file of which one line is so."""
    lines = content.splitlines()

    def with_line(number: int) -> SearchStrategy[bytes]:
        others = lines[:number], lines[number + 1 :]
        return wrong_json(lines[number]).map(lambda line: b"\n".join([*others[0], line, *others[1], b""]))

    return st.integers(0, len(lines) - 1).flatmap(with_line)


def is_wrong(value: Any, template: Any, free: tuple[str, ...] = ()) -> bool:
    """Whether plain values have a part of another kind than their template, or the key that `changed` adds.

    What stands under the keys `free` may be anything; a null may be right anywhere.
    """
    if isinstance(template, dict):
        known = [key for key in template if isinstance(value, dict) and key in value and key not in free]
        is_odd = not isinstance(value, dict) or "fuzz" in value
        return is_odd or any(is_wrong(value[key], template[key], free) for key in known)
    if isinstance(template, list):
        parts = value if isinstance(value, list) and template else ()
        return not isinstance(value, list) or any(is_wrong(part, template[0], free) for part in parts)
    if value is None or template is None:
        return False
    return isinstance(value, (dict, list)) or isinstance(value, str) != isinstance(template, str)
