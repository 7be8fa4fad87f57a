"""Text from anywhere reaches no terminal, page, table or log as anything but text."""

import csv
import io
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
from doors import run_door
from fake_slurm import FakeSlurm
from html_reader import HtmlReader
from rich.console import Console
from rich.table import Table as RichTable
from tiny import make_run, make_shards, write_attempts, write_lines

from data_prep.plain_text import PlainFormatter, PlainStream, for_rich, for_terminal, one_line
from data_prep.progress import terminal_bar
from slurm.job_records import JobRecord, add_record
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.metrics import StartLine
from vae.provenance import Attempt, Provenance
from vae.report.page import Heading, Table, Text, csv_cell, html_text, markdown_text, to_markdown, to_text
from vae.run_dir import JOBS_DIR, SCORES_FILE, log_path
from vae.study import Study, prepare_study

# Clears the screen, sets the title, goes back in the line, turns the direction of writing.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\x9b31m\rb\u202ec\x00d <script>x</script> [red]e[/] [x](u) | `f`"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", " =1+1", "=cmd|' /C calc'!A0"]


# --- the doors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2066, 0xFEFF, 0xD800])
def test_control_characters_are_written_out(code: int) -> None:
    text = for_terminal(f"a{chr(code)}b")
    assert CONTROL.search(text) is None
    assert text.isprintable() or chr(code) in "\n\t"
    assert one_line(f"a{chr(code)}b").isprintable()


def test_letters_of_all_languages_stay_as_they_are() -> None:
    for text in ("Müller: 3 ± 2 µm", "胸部X線", "صدر", "e\u0301", "🫁", "two\nlines\tand a tab"):
        assert for_terminal(text) == text


def test_a_stream_lets_nothing_through_and_rich_may_still_write_its_own_colours() -> None:
    raw = io.StringIO()
    stream = PlainStream(raw)
    print(HOSTILE, file=stream)  # type: ignore[call-overload]
    stream.writelines(["\x1b[1m", "x\n"])
    assert CONTROL.search(raw.getvalue()) is None
    assert "\\x1b[2J" in raw.getvalue()
    console = Console(file=stream, force_terminal=True)  # type: ignore[arg-type]
    console.print("[bold]x[/]")
    assert raw.getvalue().endswith("\x1b[1mx\x1b[0m\n")


def test_rich_finds_no_markup_in_what_it_is_handed() -> None:
    out = io.StringIO()
    table = RichTable("class")
    for name in (HOSTILE, "[/x]", "[red]A[/red]"):
        table.add_row(for_rich(name))
    Console(file=out, width=300).print(table)
    assert CONTROL.search(out.getvalue()) is None
    for name in ("[red]e[/]", "[/x]", "[red]A[/red]"):
        assert name in out.getvalue()


def test_a_bar_shows_names_as_they_are() -> None:
    out = io.StringIO()
    with terminal_bar("images") as bar:
        bar.console.file, bar.disable = out, False
        bar.add_task(HOSTILE, total=3)
        column = bar.columns[0](bar.tasks[0])
    assert str(column) == one_line(HOSTILE)


def test_log_lines_hold_no_control_characters() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "", 1, "%s", (HOSTILE,), sys.exc_info())
    assert CONTROL.search(PlainFormatter("%(message)s").format(record)) is None


def test_a_cell_is_one_line_and_columns_stay_in_line() -> None:
    lines = to_text(Table(["run", "note"], [["a\nforged  done", HOSTILE], ["b", "x"]])).splitlines()
    assert len(lines) == 3
    assert CONTROL.search("".join(lines)) is None
    assert lines[0].index("note") == lines[2].index("x")


def test_html_and_markdown_show_text_as_it_is(tmp_path: Path) -> None:
    assert CONTROL.search(html_text(HOSTILE)) is None
    assert "<script" not in html_text(HOSTILE) + markdown_text(HOSTILE)
    assert CONTROL.search(markdown_text(HOSTILE)) is None
    for start in ("# x", "- x", "+ x", "1. x", "2) x", "---", "===", "~~~", "> x", "```"):
        page = to_markdown([Heading("h"), Text(start)], tmp_path).split("\n\n")[1]
        assert re.match(r"\\|\d+\\|&gt;", page), start


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_finds_no_formula_in_a_cell(text: str) -> None:
    cell = csv_cell(text)
    assert isinstance(cell, str)
    assert cell.startswith("'")


def test_numbers_stay_numbers_in_a_table() -> None:
    assert [csv_cell(value) for value in (-1.5, 3, None, "linear-s0")] == [-1.5, 3, None, "linear-s0"]


# --- text from every source through the commands ---------------------------------------------------------


@pytest.fixture
def hostile_study(tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, trained by hand and by SLURM; every text in them that comes from elsewhere is hostile."""
    data = tmp_path / "shards"
    monkeypatch.setattr("tiny.CLASS_NAMES", (HOSTILE.replace("/", ""), "=1+1"))
    make_shards(data)
    folder = tmp_path / "runs" / "chest"
    by_hand = folder / HOSTILE.replace("/", "").replace("\x00", "")
    slurm_run = folder / "linear-s0"
    for run_dir in (by_hand, slurm_run):
        make_run(run_dir, data)
        write_lines(run_dir, StartLine(step=0, total_steps=8, steps_per_epoch=4))
        write_attempts(run_dir, Attempt(host=HOSTILE, nodes=HOSTILE, started=HOSTILE, device=HOSTILE))
    job = fake_slurm.submit("chest-train", array="0-1")
    fake_slurm.start(f"{job}_1")
    fake_slurm.end(f"{job}_1", "FAILED")
    add_record(
        folder, JobRecord(job, JobKind.TRAIN, Backend.SLURM, True, (0, 1), HOSTILE, name="chest-train")
    )
    path = log_path(slurm_run, "train", f"{job}_1-r0", 0)
    path.parent.mkdir()
    path.write_text(f"error: {HOSTILE}\n")
    (folder / JOBS_DIR).mkdir()
    (folder / JOBS_DIR / f"{job}_1.log").write_text(f"slurmstepd: error: CANCELLED {HOSTILE}\n")
    return folder


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if (path / "run.yaml").exists())


def test_nothing_hostile_leaves_by_any_command(hostile_study: Path) -> None:
    for door, words in {
        "status": [hostile_study],
        "why": [hostile_study],
        "report": [hostile_study],
        "logs": [hostile_study / "linear-s0"],
        "cancel": [hostile_study],
        "evaluate": [hostile_study],
    }.items():
        shown = run_door(door, *words)
        assert shown.returncode in (0, 2), shown.stderr
        assert "Traceback" not in shown.stderr
        assert CONTROL.search(shown.stdout + shown.stderr) is None, door
    everything = run_door("status", "--runs-dir", hostile_study.parent)
    assert CONTROL.search(everything.stdout + everything.stderr) is None
    assert "\\x1b[2J" in run_door("logs", hostile_study / "linear-s0").stdout
    assert "\\x1b[2J" in run_door("why", hostile_study).stdout


def test_nothing_hostile_reaches_the_report_or_its_table(hostile_study: Path) -> None:
    assert run_door("report", hostile_study).returncode == 0
    page, markdown = ((hostile_study / name).read_text() for name in ("report.html", "report.md"))
    assert CONTROL.search(page + markdown) is None
    reader = HtmlReader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "<script" not in markdown
    assert "a\\x1b[2J" in reader.text  # a run's name, a class, a host: as text
    table = (hostile_study / "scores.csv").read_text()
    assert CONTROL.search(table) is None
    assert len(list(csv.reader(io.StringIO(table)))) == 1 + len(names_of(hostile_study))


def test_a_mistake_that_quotes_something_hostile_is_one_line(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest"))
    shown = run_door("status", f"x{HOSTILE}\nhint: run this".replace("\x00", ""), "--runs-dir", tmp_path)
    assert shown.returncode == 2
    assert [line.partition(":")[0] for line in shown.stderr.splitlines()] == ["error", "hint"]
    assert CONTROL.search(shown.stderr) is None


def test_scores_that_hold_something_hostile_are_shown_as_text(scored_study: Path, tmp_path: Path) -> None:
    """The label, a reason, a unit and a card: they come from scores.json."""
    folder = Path(shutil.copytree(scored_study, tmp_path / "tiny"))
    path = folder / "direct-s0" / SCORES_FILE
    scores = json.loads(path.read_text())
    scores["label"] = HOSTILE
    scores["scores"]["gfid_paper"]["reason"] = "=1+1"
    scores["scores"]["rfid_paper"]["unit"] = "@x"
    scores["scores"]["rfid_paper"]["protocol"] |= {"images": f"+{HOSTILE}", "note": HOSTILE}
    path.write_text(json.dumps(scores))
    shown = [run_door(door, folder) for door in ("report", "status", "evaluate")]
    assert [CONTROL.search(result.stdout + result.stderr) for result in shown] == [None] * 3
    for name in ("report.html", "report.md", "scores.csv"):
        assert CONTROL.search((folder / name).read_text()) is None, name
    with (folder / "scores.csv").open() as file:
        rows = {row["score"]: row for row in csv.DictReader(file) if row["run"] == "direct-s0"}
    assert rows["gfid_paper"]["reason"] == "'=1+1"
    assert rows["rfid_paper"]["unit"] == "'@x"
    assert rows["rfid_paper"]["images"].startswith("'+a")
    assert float(rows["rfid_paper"]["value"]) == scores["scores"]["rfid_paper"]["value"]


def test_provenance_is_shown_as_text(hostile_study: Path) -> None:
    from data_prep.json_records import write_record

    facts = Provenance(commit=HOSTILE, command=("python", HOSTILE), versions={HOSTILE: HOSTILE})
    write_record(hostile_study / "linear-s0" / "provenance.json", facts)
    assert run_door("report", hostile_study).returncode == 0
    for name in ("report.html", "report.md"):
        assert CONTROL.search((hostile_study / name).read_text()) is None
