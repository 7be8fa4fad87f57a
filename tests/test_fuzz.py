"""Whatever comes is used, or refused in one line: some of what benchmarks/fuzz.py plays for longer.

Every input in `crashes/KIND/WHAT HAPPENED/` has once ended in a traceback, a hang or a lie.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fuzzing.inputs import Bench, Case, judge
from fuzzing.table import CRASHES_DIR, KINDS, read_input
from hypothesis import HealthCheck, Phase, given, settings

# Enough for the slowest machine that runs tests, where several run side by side.
LIMIT_S = 60.0
CRASHES = sorted(path for path in CRASHES_DIR.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """The bench of each kind of input, made once."""
    return cache(lambda kind: KINDS[kind].make(tmp_path_factory.mktemp(kind)))


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: "-".join(path.relative_to(CRASHES_DIR).parts[:2]))
def test_what_has_once_gone_wrong_is_right(path: Path, bench_of: Callable[[str], Bench]) -> None:
    kind, case = read_input(path)
    if finding := judge(bench_of(kind), case, LIMIT_S):
        raise finding


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_comes_is_used_or_refused_in_one_line(kind: str, bench_of: Callable[[str], Bench]) -> None:
    bench = bench_of(kind)

    @settings(
        max_examples=KINDS[kind].in_suite,
        derandomize=True,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(bench.cases)
    def play(case: Case) -> None:
        if finding := judge(bench, case, LIMIT_S):
            raise finding

    play()
