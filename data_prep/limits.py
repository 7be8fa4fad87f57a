"""What one image file may cost: bytes, pixels, and the seconds and memory of the process that decodes it.

What a file says of itself is checked before a pixel is decoded. For what it does not say, the kernel ends the
process (`bound_this_process`): nothing in Python interrupts a decoder written in C.
"""

import os
import resource
import signal
from pathlib import Path

# A radiograph has 2 to 20 megapixels of 1 or 2 bytes; more is another kind of image, or a decompression bomb.
MAX_FILE_BYTES = 128 << 20
MAX_PIXELS = 40_000_000
MIN_SIDE_PX = 16
# Beyond the 100 MB of a process that has decoded nothing yet; 40 megapixels take 160 MB in colour.
MEMORY_BYTES = 384 << 20
# CPU time, so that a busy machine makes no difference.
HEADER_S = 0.8
# The slowest honest ones took 29 ns (a PNG of colour noise) and 27 ns (JPEG in DICOM) on one core; with what
# stands above there is room for a core half as fast at 40 megapixels, a quarter as fast at 10.
PICTURE_S_PER_PX = 30e-9
DICOM_S_PER_PX = 45e-9
# More for the DICOM syntaxes that are slow for every byte (JPEG 2000, RLE), up to the slowest picture.
SLOW_S_PER_BYTE = 300e-9
SLOW_S_PER_PX = 400e-9

# How the kernel ends a process at its bounds, or because of a decoder's mistake; in the quarantine's words.
DEATHS = {
    signal.SIGPROF: "takes far longer to decode than a picture of its size",
    **dict.fromkeys(
        (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
        "crashes its decoder; it may be damaged",
    ),
}
TOO_MUCH_MEMORY = f"needs more than {MEMORY_BYTES >> 20} MiB to be decoded"

_is_bounded = False


def bound_this_process() -> None:
    """From now on too much memory is a MemoryError here, and too many seconds are the end of the process.

    Nothing of a file may stay in a core dump either.
    """
    global _is_bounded
    sizes, (_, hard) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if sizes.exists():  # only Linux tells, and keeps to the limit
        num_bytes = int(sizes.read_text().split()[0]) * os.sysconf("SC_PAGESIZE") + MEMORY_BYTES
        if hard == resource.RLIM_INFINITY or num_bytes < hard:  # else the site allows less anyway
            resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _is_bounded = True


def allow_header() -> None:
    """Begin the time of one file."""
    _allow(HEADER_S)


def allow_pixels(count: int, s_per_px: float, num_slow_bytes: int = 0) -> None:
    """Give the file that is being decoded the time for its pixels."""
    slow_s = min(num_slow_bytes * SLOW_S_PER_BYTE, count * SLOW_S_PER_PX)
    _allow(HEADER_S + count * s_per_px + slow_s)


def end_of_file() -> None:
    """Stop counting."""
    _allow(0)


def _allow(seconds: float) -> None:
    if _is_bounded:
        signal.setitimer(signal.ITIMER_PROF, seconds)
