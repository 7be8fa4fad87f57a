"""Tells glibc's malloc to keep the memory that it has, where a CPU trains or scores.

A step on the CPU takes and gives back the same few hundred megabytes of activations each time. By default
glibc maps each large block afresh and unmaps it, so that a third of the time goes into page faults.
"""

import ctypes
import os
import sys

# <malloc.h>; mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT_BYTES, PAD_BYTES = 2**31 - 1, 64 << 20


def keep_freed_memory() -> str:
    """Have freed memory reused for the rest of this process's life; returns what was done, for a log line.

    Changes nothing but where memory comes from. What the user says in MALLOC_* or GLIBC_TUNABLES, or with
    an allocator of their own, stands.
    """
    if chosen := [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        return f"allocator as {', '.join(sorted(chosen))} says"
    if "malloc" in os.environ.get("LD_PRELOAD", ""):
        return "allocator as LD_PRELOAD says"
    if not sys.platform.startswith("linux") or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return "allocator as it is: not glibc's"
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: KEPT_BYTES, M_TOP_PAD: PAD_BYTES}
    is_set = all(library.mallopt(name, value) for name, value in settings.items())
    return "allocator keeps freed memory" if is_set else "allocator as it is: glibc refused"
