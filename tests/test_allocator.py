"""Freed memory is kept: what is allocated again costs no page faults, unless the user wants otherwise."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from vae.allocator import keep_freed_memory

said = keep_freed_memory() if sys.argv[1] == "keep" else ""
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, said)
"""


def faults(how: str, **variables: str) -> tuple[int, str]:
    """Page faults of allocating 8 MB for the second time, and what was said."""
    environment = {**os.environ, **variables}
    printed = subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True, env=environment)
    number, _, said = printed.strip().partition(" ")
    return int(number), said


@pytest.mark.skipif(os.confstr_names.get("CS_GNU_LIBC_VERSION") is None, reason="needs glibc")
def test_memory_is_used_again_without_page_faults() -> None:
    assert faults("leave")[0] >= 2**23 / 2**21  # fresh pages, huge ones at best
    assert faults("keep") == (0, "allocator keeps freed memory")


def test_what_the_user_says_stands() -> None:
    assert faults("keep", MALLOC_ARENA_MAX="1")[1] == "allocator as MALLOC_ARENA_MAX says"
    assert faults("keep", LD_PRELOAD="/no/libjemalloc.so")[1] == "allocator as LD_PRELOAD says"
