"""A page of plain blocks and what its cells say; as one HTML file, as Markdown, or as text for a terminal."""

import base64
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from data_prep.plain_text import for_terminal, one_line

MISSING = "-"
# A phone shows so many columns side by side.
WIDE_COLUMNS = 4


class Heading(NamedTuple):
    """A title; level 1 is the page's own."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph; a warning stands out."""

    text: str
    is_warning: bool = False


class Table(NamedTuple):
    """Rows of cells under column heads; columns that hold `numbers`, by index, are set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


class Picture(NamedTuple):
    """A PNG file with a caption; HTML embeds it, Markdown links to it."""

    path: Path
    caption: str


class Details(NamedTuple):
    """Blocks that a reader opens when they want them."""

    title: str
    blocks: Sequence["Block"]


Block = Heading | Text | Table | Picture | Details


def labelled_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A name, numbers and a label in each row; without the last column where no row has a label."""
    width = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return Table(head[:width], [row[:width] for row in rows], frozenset(range(1, len(head) - 1)))


def number(value: float | None) -> str:
    """Four digits, or whole thousands; a dash where there is no number."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash where there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file that needs nothing beside it; all text is escaped."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html_text(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = ' class="warning"' if block.is_warning else ""
        return f"<p{kind}>{html_text(block.text)}</p>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = html_text(block.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"
    inside = "\n".join(_html(inner) for inner in block.blocks)
    return f"<details><summary>{html_text(block.title)}</summary>\n{inside}\n</details>"


def _html_table(table: Table) -> str:
    """The table; in a wide one each cell knows its column's head, for pages too narrow for columns."""
    is_wide = len(table.head) > WIDE_COLUMNS
    kinds = [' class="number"' if i in table.numbers else "" for i in range(len(table.head))]
    heads = [f' data-head="{html_text(name)}"' if is_wide and name else "" for name in table.head]

    def row(cells: Sequence[str], tag: str, attributes: Sequence[str]) -> str:
        parts = zip(cells, kinds, attributes, strict=True)
        inside = [f"<{tag}{kind}{more}>{html_text(cell)}</{tag}>" for cell, kind, more in parts]
        return f"<tr>{''.join(inside)}</tr>"

    body = "\n".join(row(cells, "td", heads) for cells in table.rows)
    head = row(table.head, "th", [""] * len(table.head))
    style = "scroll wide" if is_wide else "scroll"
    return f'<div class="{style}"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def html_text(text: str) -> str:
    """Text as HTML shows it, in a paragraph or an attribute; control characters are written out."""
    return escape(for_terminal(text))


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """The page as Markdown to lie in `folder`, with links to pictures relative to it."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {markdown_text(block.text)}"
    if isinstance(block, Text):
        return f"> **{markdown_text(block.text)}**" if block.is_warning else markdown_text(block.text)
    if isinstance(block, Table):
        rule = ["---:" if i in block.numbers else "---" for i in range(len(block.head))]
        rows = [[markdown_text(cell) for cell in row] for row in (block.head, *block.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
    if isinstance(block, Picture):
        link = quote(Path(os.path.relpath(block.path, folder)).as_posix())
        return f"{markdown_text(block.caption)}\n\n![{markdown_text(block.path.stem)}](<{link}>)"
    inside = "\n\n".join(_markdown(inner, folder) for inner in block.blocks)
    return f"<details><summary>{markdown_text(block.title)}</summary>\n\n{inside}\n\n</details>"


def markdown_text(text: str) -> str:
    """Text in which Markdown finds nothing to interpret, on one line; control characters are written out."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(one_line(text), quote=False))
    return re.sub(r"^(\d*)([-+=.)])(?=\s|\2)", r"\1\\\2", text)  # a list, a rule or a heading


def csv_cell(value: object) -> object:
    """A cell of a CSV file; text that a spreadsheet would take for a formula gets a quote before it."""
    if not isinstance(value, str):
        return value
    text = one_line(value)  # no tab and no line end stands before the sign then
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def to_text(table: Table) -> str:
    """A table as aligned text for a terminal; heads may have several lines, cells have one."""
    depth = max(head.count("\n") for head in table.head)
    heads = [("\n" * (depth - head.count("\n")) + head).split("\n") for head in table.head]
    rows = [*zip(*heads, strict=True), *([one_line(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = [">" if i in table.numbers else "<" for i in range(len(widths))]
    line = "  ".join(f"{{:{sign}{width}}}" for sign, width in zip(signs, widths, strict=True))
    return "\n".join(line.format(*row).rstrip() for row in rows)
