"""Verification: no bit of a packed folder changes unseen, and none that matters is trained or scored on."""

import shutil
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from doors import run_door
from packed_folders import flip, flipped, make_older, some_bits
from pictures import kaggle, write_bad
from test_dicom import write_dicom
from tiny import COUNTS, REPOSITORY, SIZE_PX, make_run

from data_prep.errors import DataError, ToolkitError
from data_prep.manifest import MANIFEST_FILE, read_manifest
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import KEPT_FILES, QUARANTINE_FILE, finalize, pack_part
from data_prep.sources import SALT_FILE
from data_prep.verify import verify
from vae.training.data_loader import ImageSplit, load_split
from vae.training.trainer import train


@pytest.fixture
def packed(tmp_path: Path, shards: Path) -> Path:
    """A data set of its own, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


OPTIONS = ("--size", "16", "--max-bad", "0.5", "--shard-images", "16")


def pack(source: Path, out: Path) -> Path:
    plan(str(source), out, PackOptions(16, max_bad=0.5, shard_images=16))
    pack_part(out)
    finalize(out)
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 JPEGs in the Kaggle layout, and one bad file of every kind."""
    source = kaggle(tmp_path_factory.mktemp("pictures"), train=10, test=6)
    write_bad(source / "train" / "NORMAL")
    return source


@pytest.fixture(scope="module")
def from_pictures(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(pictures, tmp_path_factory.mktemp("from-pictures"))


@pytest.fixture(scope="module")
def from_dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder with everything that there can be in one."""
    source = tmp_path_factory.mktemp("dicom")
    rows = ["path,label,split"]
    for number in range(12):
        name, split = f"{number}.dcm", ("train", "train", "val", "test")[number % 4]
        write_dicom(source / name, PatientID=f"patient {number}")
        rows.append(f"{name},{'AB'[number % 3 % 2]},{split}")
    (source / "12.dcm").write_bytes((source / "11.dcm").read_bytes()[:300])
    (source / "images.csv").write_text("\n".join([*rows, "12.dcm,A,train", ""]))
    return pack(source / "images.csv", tmp_path_factory.mktemp("from-dicom"))


def test_verify_finds_one_changed_pixel(packed: Path) -> None:
    assert verify(packed) == sum(COUNTS.values())
    shard = read_manifest(packed).splits["train"][0]
    flip(packed / shard.name, 8 * (shard.data_offset + 3 * SIZE_PX**2 + 17))
    with pytest.raises(DataError, match=r"train-00000\.h5.*3"):
        verify(packed)


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0, r"val-00000\.h5 is not a readable shard: "), (4000, r"val-00000\.h5 outside the image data$")],
)
def test_damage_outside_the_images_is_told_from_a_shard_nobody_can_read(
    packed: Path, offset: int, message: str
) -> None:
    shard = read_manifest(packed).splits["val"][0]
    assert offset < shard.data_offset
    flip(packed / shard.name, 8 * offset)
    with pytest.raises(DataError, match=message):
        verify(packed)


def is_found(folder: Path) -> bool:
    """Whether verification says in one line that something has changed."""
    try:
        verify(folder)
    except ToolkitError as error:
        return "\n" not in str(error)
    return False


def test_no_flipped_bit_of_any_file_of_a_packed_folder_passes(from_dicom: Path) -> None:
    """All bits of the manifest, and some of each other file."""
    assert not is_found(from_dicom)
    files = {path.name for path in from_dicom.iterdir() if path.stat().st_size}  # lock files are empty
    shards = {shard.name for shard in read_manifest(from_dicom).shards()}
    assert files == {MANIFEST_FILE, *KEPT_FILES, *shards}
    for name in sorted(files):
        bits = some_bits(from_dicom / name, count=10**6 if name == MANIFEST_FILE else 100)
        missed = [bit for bit in bits if not is_found_with(from_dicom / name, bit)]
        assert missed == [], name
    assert not is_found(from_dicom)


def is_found_with(path: Path, bit: int) -> bool:
    with flipped(path, bit):
        return is_found(path.parent)


def contents(folder: Path) -> list[object]:
    """All that training and scoring read of a packed folder."""
    splits = [load_split(folder, split) for split in ("train", "val", "test")]
    return [whole(split) for split in splits]


def whole(split: ImageSplit) -> list[object]:
    images = split.take(np.arange(len(split))).numpy()
    return [split.fingerprint, split.image_size_px, split.labels.tolist(), images.tobytes()]


def test_nothing_is_trained_or_scored_on_a_flipped_bit_that_matters(from_pictures: Path) -> None:
    """What a flipped bit of a shard leaves readable is to the last image what was packed."""
    expected, refused = contents(from_pictures), 0
    for shard in read_manifest(from_pictures).shards():
        for bit in some_bits(from_pictures / shard.name, 150):
            with flipped(from_pictures / shard.name, bit):
                try:
                    assert contents(from_pictures) == expected, (shard.name, bit)
                except DataError:
                    refused += 1
    assert refused > 50


# --- what users see ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audit.json", "plan.json", QUARANTINE_FILE, SALT_FILE])
def test_a_changed_file_is_named_with_what_to_do(from_dicom: Path, name: str) -> None:
    with flipped(from_dicom / name, 100):
        done = run_door("pack", from_dicom, "--verify")
        shown = run_door("pack", from_dicom, "--audit")
    error, hint = done.stderr.splitlines()
    assert (done.returncode, error) == (2, f"error: {from_dicom} is damaged: {name} has changed")
    assert ("from a copy" in hint) == (name == SALT_FILE)
    assert shown.returncode == (2 if name == "audit.json" else 0)


def test_a_folder_is_verified_without_what_is_not_passed_on(from_dicom: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(from_dicom, tmp_path / "passed-on"))
    assert len(run_door("pack", out, "--verify").stdout.splitlines()) == 1
    private = ("plan.json", QUARANTINE_FILE, SALT_FILE)
    for name in private:
        (out / name).unlink()
    done = run_door("pack", out, "--verify")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1] == f"not there, so not compared: {', '.join(private)}"
    (out / "audit.json").unlink()
    assert "audit.json is missing" in run_door("pack", out, "--verify").stderr


# --- folders packed by older versions ------------------------------------------------------------


@pytest.fixture
def older(from_pictures: Path, tmp_path: Path) -> Path:
    """A folder as it was packed before its manifest had a digest of itself."""
    out = Path(shutil.copytree(from_pictures, tmp_path / "older"))
    make_older(out)
    return out


def test_an_older_folder_is_read_and_says_what_is_not_compared(older: Path, from_pictures: Path) -> None:
    assert contents(older) == contents(from_pictures)
    done = run_door("pack", older, "--verify")
    assert done.returncode == 0
    verified, rest = done.stdout.splitlines()
    assert verified == f"32 images in {older} are as they were packed"
    assert "manifest.json, audit.json, plan.json, quarantine.jsonl, which were not compared" in rest
    assert rest.endswith(f"to add them: python jobs/pack.py {older} --finalize")


def test_a_folder_of_an_old_study_is_verified() -> None:
    """Its shards and manifest.json are all that there is, as other code has written them."""
    folder = REPOSITORY / "tests" / "golden" / "old_study" / "shards" / "tiny"
    verified, rest = run_door("pack", folder, "--verify").stdout.splitlines()
    assert verified == f"30 images in {folder} are as they were packed"
    assert rest.endswith("to add them: python jobs/pack.py SOURCE OUT")


def written(folder: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


@pytest.mark.parametrize("again", ["finalize", "pack"])
def test_an_older_folder_gets_its_digests_without_decoding_and_keeps_its_fingerprint(
    older: Path, from_pictures: Path, pictures: Path, again: str
) -> None:
    fingerprint, times = read_manifest(older).fingerprint, written(older)
    done = run_door("pack", *([older, "--finalize"] if again == "finalize" else [pictures, older, *OPTIONS]))
    assert done.returncode == 0, done.stderr
    assert read_manifest(older).fingerprint == fingerprint
    assert written(older) == times
    assert (older / MANIFEST_FILE).read_bytes() == (from_pictures / MANIFEST_FILE).read_bytes()


def test_a_run_begun_on_an_older_folder_goes_on_when_that_has_got_its_digests(
    older: Path, tmp_path: Path
) -> None:
    run, steps = make_run(tmp_path / "run", older, image_size_px=16, batch_size=4), iter(range(5))
    assert not train(run, lambda: next(steps, None) is None)
    assert run_door("pack", older, "--finalize").returncode == 0
    assert train(run)


def test_no_flipped_bit_of_an_older_manifest_changes_what_is_read(older: Path) -> None:
    """Nothing covers how it is spelled (1e-1 or 1E-1), but everything that it says is covered."""
    said = read_manifest(older)
    for bit in some_bits(older / MANIFEST_FILE, 4000):
        with flipped(older / MANIFEST_FILE, bit), suppress(ToolkitError):
            assert read_manifest(older) == said, bit


# --- what must not be blessed --------------------------------------------------------------------


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize("what", ["source_bytes", "images"])
def test_packing_again_does_not_bless_a_shard_that_has_changed(
    from_pictures: Path, pictures: Path, tmp_path: Path, what: str, is_older: bool
) -> None:
    out = Path(shutil.copytree(from_pictures, tmp_path / "out"))
    if is_older:
        make_older(out)
    shard = read_manifest(out).splits["train"][0]
    offset = shard.data_offset if what == "images" else source_bytes_offset(out / shard.name)
    flip(out / shard.name, 8 * offset)
    for words in ([out, "--finalize"], [pictures, out, *OPTIONS]):
        done = run_door("pack", *words)
        assert (done.returncode, done.stderr.splitlines()[-2]) == (
            2,
            f"error: {out / shard.name} has changed since it was packed",
        )
    # what the hint says helps
    (out / shard.name).unlink()
    assert run_door("pack", pictures, out, *OPTIONS).returncode == 0
    assert (out / MANIFEST_FILE).read_bytes() == (from_pictures / MANIFEST_FILE).read_bytes()


def source_bytes_offset(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["source_bytes"].id.get_offset())


def test_a_shard_packed_again_beside_a_changed_one_does_not_bless_it(
    from_pictures: Path, pictures: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(from_pictures, tmp_path / "out"))
    manifest = read_manifest(out)
    shard = manifest.splits["train"][0]
    flip(out / shard.name, 8 * source_bytes_offset(out / shard.name))
    (out / manifest.splits["test"][0].name).unlink()
    done = run_door("pack", pictures, out, *OPTIONS)
    assert done.returncode == 2
    assert "has changed since it was packed" in done.stderr


def test_a_changed_pixel_is_found_without_a_manifest(from_pictures: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(from_pictures, tmp_path / "out"))
    shard = read_manifest(out).splits["train"][0]
    flip(out / shard.name, 8 * shard.data_offset)
    (out / MANIFEST_FILE).unlink()
    done = run_door("pack", out, "--finalize")
    assert done.returncode == 2
    assert f"{shard.name} is damaged in 1 images [0]" in done.stderr
