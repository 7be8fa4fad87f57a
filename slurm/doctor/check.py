"""A check: what was looked at, the verdict on it, what was seen there, and what to do about it."""

import shutil
import sys
import textwrap
from dataclasses import dataclass
from functools import partial

from data_prep.json_records import Word


class Verdict(Word):
    """Whether a study can go by what was looked at."""

    OK = "ok"
    WARN = "warn"
    """Jobs run, but not as well as they could, or nobody can tell."""
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    verdict: Verdict
    name: str
    seen: str
    hint: str = ""
    """What to do, if anything."""


# Column where what was seen begins.
INDENT = 26

# So checks are written down: ok(name, seen), warn(name, seen, hint), fail(name, seen, hint).
ok = partial(Check, Verdict.OK)
warn = partial(Check, Verdict.WARN)
fail = partial(Check, Verdict.FAIL)


def check_lines(check: Check) -> str:
    """For a terminal: verdict, name, what was seen, and below it what to do."""
    text = fold(f"{check.verdict:4}  {check.name:18}", check.seen)
    return text + "\n" + fold("", f"-> {check.hint}") if check.hint else text


def fold(start: str, text: str) -> str:
    """`start` and `text` in two columns, the second folded where a terminal ends."""
    lines = [text]
    if sys.stdout.isatty():
        width = max(60, shutil.get_terminal_size().columns) - INDENT
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"{start:{INDENT}}" + f"\n{'':{INDENT}}".join(lines)
