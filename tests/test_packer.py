"""Packing: patients stay on one side, bad files are named, and no interruption changes a byte."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest
from pictures import BAD, grey, jpeg, kaggle, write_bad
from tiny import REPOSITORY, child_environment

from data_prep.errors import DataError
from data_prep.manifest import MANIFEST_FILE, Manifest, read_manifest
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import finalize, pack_part
from data_prep.shard_reader import open_shard, read_records

OPTIONS = PackOptions(size_px=32, shard_images=16)


def pack(source: Path, out: Path, options: PackOptions = OPTIONS, workers: int = 1) -> Manifest:
    plan(str(source), out, options)
    pack_part(out, workers=workers)
    return finalize(out)


def contents(out: Path) -> dict[str, str]:
    """Digest of every file of a data set that users see."""
    seen = [path for path in out.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in seen}


def groups(out: Path) -> dict[str, set[str]]:
    """Patients by split."""
    patients: dict[str, set[str]] = defaultdict(set)
    for shard in read_manifest(out).shards():
        patients[shard.split] |= {record.group for record in read_records(out / shard.name)}
    return patients


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 JPEGs in the Kaggle layout without validation images."""
    return kaggle(tmp_path_factory.mktemp("kaggle"))


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "shards"
    pack(source, out)
    return out


def test_validation_is_cut_by_patient_and_test_stays(unbroken: Path) -> None:
    manifest = read_manifest(unbroken)
    assert manifest.num_images("test") == 20
    assert manifest.num_images("train") + manifest.num_images("val") == 80
    assert manifest.num_images("val") == 8  # 10 %, and whole patients
    patients = groups(unbroken)
    assert not patients["train"] & patients["val"]
    assert not (patients["train"] | patients["val"]) & patients["test"]


def test_workers_and_array_tasks_write_the_same_bytes(source: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    plan(str(source), out, OPTIONS)
    pack_part(out, part=1, num_parts=2, workers=2)
    with pytest.raises(DataError, match="shards are not packed yet"):
        finalize(out)
    assert not (out / MANIFEST_FILE).exists()
    pack_part(out, part=0, num_parts=2)
    finalize(out)
    assert contents(out) == contents(unbroken)


def test_packing_again_changes_nothing(source: Path, unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.glob("*.h5")}
    pack(source, unbroken)
    assert {path: path.stat().st_mtime_ns for path in unbroken.glob("*.h5")} == before


@pytest.mark.slow
def test_killed_pack_ends_with_the_same_bytes(source: Path, unbroken: Path, tmp_path: Path) -> None:
    """kill -9 of the packer and its workers at random moments, until it has come through."""
    out, rng, kills = tmp_path / "shards", random.Random(3), 0
    command = [sys.executable, "jobs/pack.py", str(source), str(out), "--size", "32", "--shard-images", "16"]
    while not (out / MANIFEST_FILE).exists():
        child = subprocess.Popen(
            [*command, "--workers", str(1 + kills % 2)],
            cwd=REPOSITORY,
            env=child_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if kills < 8:
            shards_before = len(list(out.glob("*.h5")))
            give_up = time.monotonic() + 20
            while len(list(out.glob("*.h5"))) == shards_before and child.poll() is None:
                assert time.monotonic() < give_up
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                kills += 1
        child.wait()
    assert kills >= 3
    assert contents(out) == contents(unbroken)
    assert not list(out.glob(".*.part"))


@pytest.mark.parametrize("size", ["8k", "36k", "40k", "100k", "212k"])
def test_full_disk_is_one_clear_error_and_a_rerun_finishes(
    source: Path, unbroken: Path, tmp_path: Path, size: str
) -> None:
    """Full at the plan, inside a first shard (HDF5 itself would abort there), and later."""
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(options, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
            pack(source, mount / "shards")
        subprocess.run(["mount", "-o", "remount,size=10m", str(mount)], check=True)
        pack(source, mount / "shards")
        assert contents(mount / "shards") == contents(unbroken)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def with_bad(tmp_path: Path) -> Path:
    """60 good images, one bad one of every kind, and good ones with awkward names."""
    root = kaggle(tmp_path / "source", train=20, test=10)
    write_bad(root / "train" / "NORMAL")
    for name in (b"with space.jpeg", b"line\nbreak.jpeg", b"\xff\xfe.jpeg"):
        path = root / "train" / "NORMAL" / os.fsdecode(name)
        path.write_bytes(jpeg(grey(name[0])))
    return root


def test_every_bad_file_is_quarantined_with_its_reason_and_the_rest_packed(
    with_bad: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    manifest = pack(with_bad, out, PackOptions(size_px=32, max_bad=0.5), workers=2)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["key"].rpartition("/")[2]: line["reason"] for line in lines}
    assert reasons.keys() == BAD.keys()
    assert all(BAD[name] in reason for name, reason in reasons.items())
    keys = [*chain.from_iterable(open_shard(out, shard).keys for shard in manifest.shards())]
    assert len(keys) == 63
    awkward = {"with space.jpeg", "line\\x0abreak.jpeg", "\\xff\\xfe.jpeg"}
    assert awkward <= {key.rpartition("/")[2] for key in keys}


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_bad_files_pack_nothing(with_bad: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "shards"
    with pytest.raises(DataError, match=r"more than --max-bad 0\.01"):
        pack(with_bad, out, PackOptions(size_px=32, shard_images=8), workers)
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["quarantine.jsonl"]
    assert pack(with_bad, out, PackOptions(size_px=32, shard_images=8, max_bad=0.5)).num_images("test") == 20


def test_pack_whose_training_images_are_all_bad_is_refused(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=4, test=10)
    for path in source.glob("train/*/*"):
        path.write_text("no image")
    with pytest.raises(DataError, match="no image is left to train on"):
        pack(source, tmp_path / "out", PackOptions(size_px=32, max_bad=0.9))
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


def test_too_many_bad_files_over_all_parts_are_found_at_the_end(with_bad: Path, tmp_path: Path) -> None:
    """Each part alone stays below the limit."""
    out = tmp_path / "shards"
    options = PackOptions(size_px=32, shard_images=8, max_bad=0.15)
    planned = plan(str(with_bad), out, options)
    for part in range(len(planned.shards)):
        pack_part(out, part, len(planned.shards))
    with pytest.raises(DataError, match="17 of 80 files are unusable"):
        finalize(out)
    assert not list(out.glob("*.h5"))
