"""The audit: counts, duplicates, leaks, and what tells the classes apart by their files."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import XRAYS
from pictures import grey, jpeg, kaggle
from rich.console import Console
from tiny import record

from data_prep import audit
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import finalize, pack_part


def pack_and_audit(source: Path, out: Path, size_px: int = 32, max_bad: float = 0.01) -> audit.Audit:
    plan(str(source), out, PackOptions(size_px=size_px, max_bad=max_bad))
    pack_part(out, workers=2)
    finalize(out)
    return audit.read(out)


def test_counts_and_duplicates(tmp_path: Path) -> None:
    root = kaggle(tmp_path / "source", train=20, test=10)
    normal = root / "train" / "NORMAL"
    shutil.copy(normal / "IM-0001-0002.jpeg", normal / "IM-0001-9999.jpeg")
    shutil.copy(
        root / "test" / "NORMAL" / "IM-1000-0000.jpeg",
        root / "test" / "PNEUMONIA" / "person1000_virus_9.jpeg",
    )
    facts = pack_and_audit(root, tmp_path / "out")
    assert facts.num_images == 62
    assert facts.splits["test"] == {"NORMAL": 10, "PNEUMONIA": 11}
    assert facts.duplicates == audit.Duplicates(groups=2, files=4, across_splits=0, across_classes=1)
    assert facts.patient_leaks == []
    assert facts.classes["NORMAL"].modes == {"L": 31}
    assert facts.classes["NORMAL"].median_width_px == 80


def test_class_whose_files_are_all_bad_is_shown_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle(tmp_path / "source", train=20, test=10)
    (root / "train" / "COVID").mkdir()
    (root / "train" / "COVID" / "empty.jpeg").touch()
    facts = pack_and_audit(root, tmp_path / "out", max_bad=0.5)
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["classes"]["COVID"] == {}
    assert facts.splits["train"]["COVID"] == 0
    assert facts.quarantined == {"is empty": 1}
    Console(width=120).print(audit.tables(facts))
    assert "COVID" in capsys.readouterr().out


def test_class_names_that_look_like_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`[/x]` ended in a traceback, `[red]A[/red]` lost its tags, `:smile:` became a picture."""
    names = ["[/x]", "[red]A[/red]", ":smile:"]
    for number in range(24):
        path = tmp_path / "s" / f"{number}.jpeg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(grey(number)))
    rows = [f"{number}.jpeg,{names[number % 3]}" for number in range(24)]
    (tmp_path / "s" / "list.csv").write_text("\n".join(["path,label", *rows]))
    facts = pack_and_audit(tmp_path / "s" / "list.csv", tmp_path / "out")
    Console(width=160).print(audit.tables(facts))
    shown = capsys.readouterr().out
    assert all(shown.count(name) == 2 for name in names)


def test_leaks_are_patients_on_two_sides() -> None:
    rows = [("train", record("train", 0)), ("test", record("test", 0))]
    assert audit.leaks(rows) == []  # unknown patients are no leak
    of_one_patient = [(split, dataclasses.replace(row, group="p1")) for split, row in rows]
    assert audit.leaks(of_one_patient) == ["p1"]


@pytest.mark.xrays
def test_audit_of_the_full_kermany_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = pack_and_audit(XRAYS / "full_224", tmp_path / "out", size_px=64)
    counts = {split: sum(classes.values()) for split, classes in facts.splits.items()}
    assert counts["train"] + counts["val"] == 5216
    assert counts["test"] == 624
    assert facts.duplicates == audit.Duplicates(groups=30, files=62, across_splits=0, across_classes=0)
    assert facts.patient_leaks == []
    assert 0.09 < counts["val"] / 5216 < 0.11
    Console(width=120).print(audit.tables(facts))
    assert "train and val together: 5,216 images; test: 624 images" in capsys.readouterr().out


@pytest.mark.xrays
def test_originals_pack_without_loss(tmp_path: Path) -> None:
    facts = pack_and_audit(XRAYS / "originals", tmp_path / "out", size_px=256)
    assert {split: sum(classes.values()) for split, classes in facts.splits.items()} == {
        "train": 248,
        "val": 22,
        "test": 68,
    }
    assert facts.quarantined == {}


def test_where_nobody_names_patients_no_split_is_called_clean(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=40)
    rows = [f"{path.relative_to(source)},{path.parent.name}" for path in sorted(source.rglob("*.jpeg"))]
    (source / "list.csv").write_text("\n".join(["path,label", *rows]))
    lines = audit.findings(pack_and_audit(source / "list.csv", tmp_path / "out"))
    assert "the source names no patients: nobody can tell whether one is in two splits" in lines
    assert not [line for line in lines if line.startswith("patients in more than one split")]
