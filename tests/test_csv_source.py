"""A CSV: every row whole, every file named once, every patient one patient; and quick for a million rows."""

import subprocess
import sys
from pathlib import Path

import pytest
from doors import run_door
from pictures import grey, jpeg
from tiny import child_environment

from data_prep.csv_source import read_csv
from data_prep.errors import DataError
from data_prep.items import clean_patient, folded_patient
from data_prep.sources import find_items


def table(folder: Path, text: str) -> Path:
    """`text` as a CSV file in `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / "list.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def refusal(path: Path) -> str:
    """What is said of a CSV that cannot be meant, in one line, without what it holds."""
    with pytest.raises(DataError) as caught:
        read_csv(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert "JANE" not in f"{caught.value}{caught.value.hint}"
    return str(caught.value)


@pytest.mark.parametrize(
    "written", [" p1", "p1 ", "p1\t", "p1\u00a0", "\uff50\uff11", "p\u200b1", "\ufeffp1", "\u2003p1"]
)
def test_patient_is_the_same_however_it_is_written(tmp_path: Path, written: str) -> None:
    """` p1` in test and `p1` in train were two patients, and the audit said that none was on two sides."""
    path = table(tmp_path, f"path,split,patient\na.png,train,p1\nb.png,test,{written}\n")
    assert {item.group for item in read_csv(path)} == {"p1"}


def test_composed_and_decomposed_letters_are_one_patient() -> None:
    assert clean_patient("Mu\u0308ller") == clean_patient("M\u00fcller")
    assert clean_patient("e\u0301") != clean_patient("e")


def test_patient_on_two_sides_under_two_spellings_is_refused(tmp_path: Path) -> None:
    """200 patients were, and the audit said 0."""
    rows = [f"{number}.png,A,train,p{number}\n{number}b.png,B,test, p{number}" for number in range(20)]
    path = table(tmp_path, "path,label,split,patient\n" + "\n".join(rows))
    done = run_door("pack", path, tmp_path / "out")
    assert done.returncode == 2
    assert "20 patients have images in two splits" in done.stderr


def test_ids_that_differ_in_case_or_leading_zeros_only_are_counted_in_a_warning(tmp_path: Path) -> None:
    ids = ["p1", "P1", "p01", "q2", "Q2", "r3", "r30", "10", "010", "100"]
    rows = [f"{number}.png,{patient}" for number, patient in enumerate(ids)]
    (note,) = find_items(str(table(tmp_path, "path,patient\n" + "\n".join(rows))), tmp_path).notes
    assert note.startswith("7 of 10 patient ids differ from another one in case or leading zeros only")
    assert folded_patient("P-007") == folded_patient("p-7") != folded_patient("p-70")


@pytest.mark.parametrize("second", ["./i.png", "../d/i.png", "sub//..//i.png", "{folder}/i.png"])
def test_one_file_under_two_names_is_refused(tmp_path: Path, second: str) -> None:
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    (folder / "i.png").touch()
    path = table(folder, f"path,split\ni.png,train\n\nother.png,train\n{second.format(folder=folder)},test\n")
    assert refusal(path).endswith("lines 2 and 5 name the same file")


def test_one_file_through_links_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "i.png").touch()
    (folder / "linked").symlink_to(folder / "real")
    (folder / "link.png").symlink_to(folder / "real" / "i.png")
    for second in ("linked/i.png", "link.png", "linked/../link.png"):
        path = table(folder, f"path\nreal/i.png\n{second}\n")
        assert refusal(path).endswith("lines 2 and 3 name the same file")
    assert len(read_csv(table(folder, "path\nreal/i.png\nlinked/j.png\nk.png\nreal/k.png\n"))) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\nJANE.png\n", "line 2: 1 cells under 2 columns"),
        ("path,label\na.png,A\nJANE.png,A,B\n", "line 3: 3 cells under 2 columns"),
        ("path,label,label\na.png,A,JANE\n", "line 1: there are two columns label"),
        ("path,path\na.png,JANE.png\n", "line 1: there are two columns path"),
        ("label,split\nA,train\n", "line 1: there is no column path"),
        ("path,JANE\na.png,A\n", "line 1: column 2 has another name"),
        ("JANE.png;A;train\n", "line 1: column 1 has another name"),
        ("", "line 1: there is no column path"),
        ("path,split\nJANE.png,JANE\n", "line 2: its split is not train, val, test or empty"),
        ("path\nJA\0NE.png\n", "line 2"),
        (
            f"path,label\na.png,{'JANE' * 25_000}\n",
            "line 2: its class has a name of more than 128",
        ),
        (f"path,patient\na.png,{'JANE' * 25_000}\n", "line 2: its patient's id has more than 256"),
        (f"path\n{'JANE' * 5_000}\n", "line 2: its path is empty, longer than 4096 characters"),
    ],
)
def test_row_or_column_too_many_or_too_few_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('path,label\na.png,A\n"JANE.png,A\n' + "b.png,B\n" * 50, 3),
        ('path,label\na.png,A\n"JANE.png,A\n' + "b.png,B\n" * 500_000, 3),
        ('path,label\na.png,"JANE\nb.png,B\nc.png,C"\nd.png,D\n', 2),
        ('path,label\na.png,A\nb.png,"JANE', 3),
        ('path,label\na.png,"JANE\nb.png,"B"\n', 2),
        ('path,label\na.png,"A"JANE\nb.png,B\n', 2),
    ],
)
def test_quote_that_does_not_end_on_its_line_loses_no_row(tmp_path: Path, text: str, line: int) -> None:
    """It swallowed all later rows without a word, or ended in a traceback."""
    assert f"line {line}: " in refusal(table(tmp_path, text))


def test_quoted_cells_and_windows_lines_are_read(tmp_path: Path) -> None:
    text = 'path,label\r\n"a, ""b"".png","A, B"\r\n\r\nc.png,C\r\n'
    items = read_csv(table(tmp_path, text))
    assert [(item.key, item.label) for item in items] == [('a, "b".png', "A, B"), ("c.png", "C")]


def test_refused_csv_is_exit_code_2_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpeg").write_bytes(jpeg(grey(0)))
    done = run_door("pack", table(tmp_path / "d", 'path\na.jpeg\n"b.jpeg\n'), tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_million_rows_would_be_listed_in_15_seconds_and_600_mb(tmp_path: Path) -> None:
    """A quarter of them in a quarter of that."""
    with (tmp_path / "list.csv").open("w") as file:
        file.write("path,label,split,patient\n")
        file.writelines(
            f"images/{number % 100:03d}/view{number:08d}.png,{'AB'[number % 2]},,patient{number // 3:06d}\n"
            for number in range(250_000)
        )
    code = """
import resource, sys
from pathlib import Path
from data_prep.sources import find_items
print(len(find_items(sys.argv[1], Path(sys.argv[2])).items))
used = resource.getrusage(resource.RUSAGE_SELF)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0], used.ru_utime + used.ru_stime)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "list.csv"), str(tmp_path / "out")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    count, memory_kb, seconds = map(float, done.stdout.split())
    assert count == 250_000
    assert memory_kb < 150_000
    assert seconds < 15 / 4
