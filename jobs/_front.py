"""What every front door shares: import path, parser, logging, one clear line for a user's mistake."""

import errno
import logging
import os
import re
import sys
from argparse import SUPPRESS, Action, RawTextHelpFormatter
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

# `python jobs/launch.py` puts jobs/ on the path, not the repository; with this the
# commands work before `pip install -e .` and run the code they stand beside.
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

try:
    import jsonargparse
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed for {sys.executable}", file=sys.stderr)
    print("hint: `make install`, then `. .venv/bin/activate`; or `pip install -e .`", file=sys.stderr)
    sys.exit(2)

from data_prep.errors import ToolkitError
from data_prep.plain_text import PlainStream, log_to_stderr
from vae.config import KINDS, could_nest_deep

log = logging.getLogger(__name__)

# `--help` shows the line under each setting
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

# What a disk, or a path that cannot be one, and not the code, is to blame for.
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
REFUSED |= {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class Help(RawTextHelpFormatter):
    """Keeps the layout of texts, and says what a flag is when it is not given."""

    def _get_help_string(self, action: Action) -> str:
        """The help of a flag with its default, unless it has none or its text tells it."""
        text, default = action.help or "", action.default
        is_silent = default in (None, "", SUPPRESS) or action.nargs == 0 or not action.option_strings
        if is_silent or "(default: " in text:
            return text
        return f"{text} (default: {self._typed(default, action).replace('%', '%%')})"

    def _typed(self, value: Any, action: Action) -> str:
        """A value as one would type it after the flag."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (list, tuple)):
            words = map(str, value)
            return " ".join(words) if action.nargs else f"[{','.join(words)}]"
        return str(value)

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return "VALUE"


class Parser(jsonargparse.ArgumentParser):
    """A parser that keeps the layout of its texts, takes no abbreviations and answers in one line."""

    def __init__(self, doc: str | None) -> None:
        """`doc` is the front door's: what --help says before the flags, then its examples."""
        description, head, examples = (doc or "").partition("examples:\n")
        super().__init__(
            description=description, epilog=head + examples, formatter_class=Help, allow_abbrev=False
        )
        self.instead: dict[str, str] = {}
        """What to use instead of a flag that one may look for here but that does not exist."""

    def add_runs_dir(self) -> None:
        text = "where studies are kept"
        self.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help=text)

    def add_target(
        self, metavar: str = "STUDY|STUDY/RUN", nargs: Literal["?", "+"] | None = None
    ) -> "Parser":
        """Add the study or run to work on, as `what`, and --runs-dir; returns the parser."""
        kinds = {"STUDY": "name of a study, or its folder", "STUDY/RUN": "a run of a study, or its folder"}
        text = kinds.get(metavar, "a study or one of its runs, or the folder")
        self.add_argument("what", metavar=metavar, nargs=nargs, help=text)
        self.add_runs_dir()
        return self

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As usual; values that YAML cannot read are an error like any other."""
        words = args[0] if args else sys.argv[1:]
        if any(map(could_nest_deep, words)):
            self.error("no setting is nested so deep")
        try:
            return super().parse_args(*args, **kwargs)
        except (ValueError, RecursionError) as error:  # as a number of 5,000 digits
            self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong without the usage block, which hides it, and exit with code 2."""
        line = re.sub(r'Parser key "([\w.]+)"', r"--\1", in_plain_words(message))
        if missing := re.search("(?<=arguments are required: ).*", line):
            line = line[: missing.start()] + ", ".join(map(self._typed, missing[0].split(", ")))
        hints = [hint for flag, hint in self.instead.items() if re.search(rf"{flag}\b", line)]
        hints = hints or self._meant(line)
        fail(line, "; ".join(hints) or f"python jobs/{self.prog} --help")

    def _meant(self, line: str) -> list[str]:
        """The flag that comes closest to one that does not exist."""
        unknown = re.findall(r"--[\w.-]+", line) if "nrecognized arguments" in line else []
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = [name for word in unknown for name in get_close_matches(word, flags, 1)]
        return [f"did you mean {name}?" for name in near]

    def _typed(self, name: str) -> str:
        """An argument as one would type it."""
        argument = next((action for action in self._actions if action.dest == name), None)
        return name if argument is None else [*argument.option_strings, str(argument.metavar)][0]


def in_plain_words(message: str) -> str:
    """jsonargparse's message on one line, without Python's names of types."""
    line = " ".join(message.split())
    for kind, words in KINDS.items():
        line = line.replace(f"Expected a <class '{kind}'>. Got value: ", f"expected {words}, not ")
    line = re.sub(r"Expected a typing\.Literal\[(.*?)\]\. Got value: ", r"expected one of \1, not ", line)
    return re.sub(r"Does not validate .* Given value: ", f"expected {KINDS['dict']}, not ", line)


def fail(message: object, hint: str | None) -> NoReturn:
    """End with one line on what is wrong, one on what to do, and exit code 2."""
    for title, text in (("error", message), ("hint", hint)):
        if text:  # of one line each: what is quoted in them must not pass for another
            print(f"{title}: {text}".replace("\n", "\\n"), file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], int | None]) -> None:
    """Call `main`; a user's mistake becomes one line and exit code 2, never a traceback."""
    sys.stdout, sys.stderr = PlainStream(sys.stdout), PlainStream(sys.stderr)
    log_to_stderr(logging.INFO)
    try:
        sys.exit(main() or 0)
    except ToolkitError as error:
        fail(error, error.hint)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of `status | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        hint = "mend that or choose another place, and run the same command again"
        fail(f"{error.strerror}: {error.filename or 'while writing'}", hint)
