"""What every front door shares: import path, parser, logging, one clear line for a user's mistake."""

from __future__ import annotations

import logging
import os
import re
import sys
from argparse import RawTextHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# `python jobs/launch.py` puts jobs/ on the path, not the repository; with this the
# commands work before `pip install -e .` and run the code they stand beside.
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import jsonargparse

from data_prep.errors import ToolkitError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class Parser(jsonargparse.ArgumentParser):
    """A parser that keeps the layout of its texts, takes no abbreviations and answers in one line."""

    def __init__(self, description: str | None, examples: str) -> None:
        super().__init__(
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=RawTextHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong without the usage block, which hides it, and exit with code 2."""
        line = re.sub(r'Parser key "([\w.]+)"', r"--\1", " ".join(message.split()))
        line = re.sub(r"a <class '(\w+)'>\. Got value: ", r"\1, not ", line)
        print(f"error: {line}", file=sys.stderr)
        print(f"hint: python jobs/{self.prog} --help", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def run(main: Callable[[], int | None]) -> None:
    """Call `main`; a user's mistake becomes one line and exit code 2, never a traceback."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        sys.exit(main() or 0)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of `status | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
