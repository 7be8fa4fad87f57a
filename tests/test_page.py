"""One set of blocks as HTML, Markdown and text; nothing in it is taken for markup."""

import base64
from pathlib import Path

from html_reader import HtmlReader
from PIL import Image

from vae.report.page import (
    Block,
    Details,
    Heading,
    Picture,
    Table,
    Text,
    fixed,
    number,
    to_html,
    to_markdown,
    to_text,
)

EVIL = "<script>alert('x')</script> & | `code` [link](u) \"q\""


def blocks(folder: Path) -> list[Block]:
    picture = folder / "figures" / "a.png"
    picture.parent.mkdir(exist_ok=True)
    Image.new("L", (3, 2), 7).save(picture)
    table = Table([EVIL, "n"], [[EVIL, "1"], ["b", "1,000"]], frozenset([1]))
    return [
        Heading(EVIL, 1),
        Text(EVIL),
        Text(EVIL, is_warning=True),
        Picture(picture, EVIL),
        Details(EVIL, [table]),
    ]


def test_html_shows_text_as_it_is(tmp_path: Path) -> None:
    reader = HtmlReader(to_html(EVIL, blocks(tmp_path)))
    assert reader.text.count(EVIL) == 8
    names = [name for name, _ in reader.tags]
    assert "script" not in names
    assert "a" not in names
    assert ("p", {"class": "warning"}) in reader.tags
    assert ("td", {"class": "number"}) in reader.tags


def test_html_carries_its_pictures_in_itself(tmp_path: Path) -> None:
    reader = HtmlReader(to_html("t", blocks(tmp_path)))
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    start = "data:image/png;base64,"
    assert [source[: len(start)] for source in sources if source] == [start]
    assert base64.b64decode(sources[0][len(start) :]) == (tmp_path / "figures" / "a.png").read_bytes()


def test_cells_of_a_wide_table_name_their_column_for_narrow_pages() -> None:
    """A page without columns shows `loss: 4` and nothing else says what the 4 is."""
    head = ["run", "a", "b", "c", 'loss "x" <y>']
    reader = HtmlReader(
        to_html("t", [Table(head, [["r", "1", "2", "3", "4"]]), Table(head[:2], [["r", "1"]])])
    )
    cells = [attributes.get("data-head") for tag, attributes in reader.tags if tag == "td"]
    assert cells == [*head, None, None]


def test_markdown_shows_text_as_it_is_and_links_pictures_beside_it(tmp_path: Path) -> None:
    page = to_markdown(blocks(tmp_path), tmp_path)
    assert "<script" not in page
    assert "![a](<figures/a.png>)" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert [line.replace(r"\|", "").count("|") for line in rows] == [3, 3, 3, 3]
    assert rows[1] == "| --- | ---: |"


def test_text_tables_line_up() -> None:
    table = Table(["run", "FID"], [["linear-s0", "0.4"], ["a", "10.25"]], frozenset([1]))
    assert to_text(table).splitlines() == [
        "run          FID",
        "linear-s0    0.4",
        "a          10.25",
    ]


def test_heads_of_several_lines_stand_on_their_columns() -> None:
    table = Table(["run", "loss\nnats/image"], [["a", "3.5"]], frozenset([1]))
    assert to_text(table).splitlines() == [
        "           loss",
        "run  nats/image",
        "a           3.5",
    ]


def test_numbers_have_four_digits_or_are_whole() -> None:
    assert [number(value) for value in (None, 0.44671, 35912.4, 24.0, 0.0)] == [
        "-",
        "0.4467",
        "35,912",
        "24.00",
        "0.000",
    ]
    assert [fixed(value, 1) for value in (None, 2.25, 1234.56)] == ["-", "2.2", "1,234.6"]
