"""tests/README.md: no known failure without a test that exists, or a reason."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LINES = (TESTS / "README.md").read_text().splitlines()
# Failures of other launchers, and defects that were found here.
LAST = {"F": 34, "D": 12, "R": 9, "C": 8}


@pytest.mark.parametrize("letter", LAST)
def test_every_known_failure_has_a_row_that_names_a_test_or_a_reason(letter: str) -> None:
    rows = [line.split("|") for line in LINES if re.match(rf"\| {letter}\d+ ", line)]
    assert [row[1].strip() for row in rows] == [f"{letter}{number + 1}" for number in range(LAST[letter])]
    assert all(len(row[3].strip()) > 20 for row in rows)


def test_the_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", "\n".join(LINES))
    assert len(named) > sum(LAST.values())
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (TESTS / file).read_text()]
    assert missing == []
