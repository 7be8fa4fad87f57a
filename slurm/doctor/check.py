"""A check: what was looked at, the verdict on it, what was seen there, and what to do about it."""

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


# So checks are written down: ok(name, seen), warn(name, seen, hint), fail(name, seen, hint).
ok = partial(Check, Verdict.OK)
warn = partial(Check, Verdict.WARN)
fail = partial(Check, Verdict.FAIL)
