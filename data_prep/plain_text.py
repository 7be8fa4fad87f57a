"""Text from files, names and other programs, made harmless where it leaves for a terminal or a log.

The front doors print through a PlainStream and every log line goes through a PlainFormatter, so nobody else
has to think of it; only rich, which writes to the terminal itself, is handed text by way of `for_rich`.
HTML, Markdown and CSV have doors of their own in vae/report/.
"""

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

# What a terminal could take for a command or show in another order: control characters but line ends and
# tabs, marks of direction, other line ends, halves of characters.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufff9-\ufffb]"
)


def for_terminal(text: str) -> str:
    """`text` without anything that a terminal would obey; an escape character becomes `\\x1b`."""
    return text if text.isprintable() else UNPRINTABLE.sub(_escaped, text.replace("\r\n", "\n"))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(text: str) -> str:
    """The same on one line, for a cell or a sentence."""
    return for_terminal(" ".join(text.split()))


def for_rich(text: str) -> str:
    """The same for rich where it reads markup, as in the cells of its tables and in `Console.print`."""
    from rich.markup import escape  # a twentieth of a second, which most commands can do without

    return escape(one_line(text))


class PlainStream:
    """A stream whose `write` lets nothing through that a terminal would obey."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # where rich, which asks for this name, may write its own colours

    def write(self, text: str) -> int:
        return self.rich_proxied_file.write(for_terminal(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class PlainFormatter(logging.Formatter):
    """Log lines, tracebacks included, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


def log_to_stderr(level: int, form: str = "%(message)s") -> None:
    """Log to standard error, unless something else is set up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(form))
    logging.basicConfig(handlers=[handler], level=level)
