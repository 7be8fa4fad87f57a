"""tests/README.md: no known failure without a test that exists, or a reason."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [line for line in (TESTS / "README.md").read_text().splitlines() if re.match(r"\| F\d+ ", line)]


def test_every_known_failure_has_a_row_and_no_row_is_empty() -> None:
    assert [row.split("|")[1].strip() for row in ROWS] == [f"F{number}" for number in range(1, 35)]
    assert all(len(row.split("|")[3].strip()) > 20 for row in ROWS)


def test_the_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", "\n".join(ROWS))
    assert len(named) > 34
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (TESTS / file).read_text()]
    assert missing == []
