"""Finding, checking and fetching weights, with a real HTTP server on this machine."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from doors import run_door
from tiny import REPOSITORY, child_environment

from data_prep.errors import SettingsError, WeightsError
from vae.scoring import inception_weights as weights
from vae.study import Study

CONTENT = b"weights" * 400_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file.pth").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()  # s between polls
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def prefix() -> str:
    return hashlib.sha256(CONTENT).hexdigest()[:8]


def test_the_place_is_that_of_torch_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.hub

    for environment in (
        {"TORCH_HOME": "/somewhere/torch"},
        {"XDG_CACHE_HOME": "/else/cache"},
        {},
    ):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert weights.locate() == Path(torch.hub.get_dir()) / "checkpoints" / weights.FILE_NAME


def test_the_file_is_the_one_torchvision_would_load() -> None:
    from torchvision.models import Inception_V3_Weights

    assert Inception_V3_Weights.DEFAULT.url == weights.URL
    assert weights.FILE_NAME.endswith(f"-{weights.SHA256_PREFIX}.pth")


def test_a_given_path_wins_over_the_cache() -> None:
    assert weights.locate("/some/file.pth") == Path("/some/file.pth")
    assert weights.locate() != Path("/some/file.pth")


def test_missing_weights_fail_the_check_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="no Inception v3 weights at") as caught:
        weights.check(Study("try"))
    assert "python jobs/weights.py fetch" in caught.value.hint


def test_the_smoke_extractor_needs_no_weights_and_others_are_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights.check(Study("try", extractor="smoke"))
    with pytest.raises(SettingsError, match=r"'clip'; known: inception, smoke"):
        weights.check(Study("try", extractor="clip"))


def test_wrong_weights_fail_by_hash(tmp_path: Path) -> None:
    path = tmp_path / weights.FILE_NAME
    path.write_bytes(CONTENT)
    with pytest.raises(WeightsError, match=f"truncated or holds other weights.*{prefix()}"):
        weights.check(Study("try", inception_weights=str(path)))


def test_published_weights_carry_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHA256_PREFIX", prefix())
    path = tmp_path / "copy.pth"
    path.write_bytes(CONTENT)
    assert weights.identify(path) == (hashlib.sha256(CONTENT).hexdigest(), "")


def test_own_weights_need_a_digest_beside_them_and_are_labelled(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    path.with_name("own.pth.sha256").write_text(f"{digest.upper()}  own.pth\n")
    assert weights.identify(path) == (digest, "unknown weights, not comparable")


def test_truncated_own_weights_fail_although_a_digest_lies_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    path.with_name("own.pth.sha256").write_text(f"{hashlib.sha256(CONTENT).hexdigest()}  own.pth\n")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="truncated or holds other weights"):
        weights.identify(path)


def test_fetch_downloads_checks_and_leaves_only_the_file(tmp_path: Path, server: str) -> None:
    path = tmp_path / "cache" / "file.pth"
    assert weights.fetch(path, f"{server}/file.pth", prefix()).startswith(prefix())
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.pth"]


def test_fetch_does_not_download_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(CONTENT)
    weights.fetch(path, "http://127.0.0.1:9/nothing-listens-here", prefix())


@pytest.mark.parametrize(
    ("address", "reason"),
    [("/file.pth", "gave a file with SHA-256"), ("/absent.pth", "cannot fetch .*: File not found")],
)
def test_fetch_keeps_the_old_file_when_the_download_is_no_good(
    tmp_path: Path, server: str, address: str, reason: str
) -> None:
    path = tmp_path / "cache" / "file.pth"
    path.parent.mkdir()
    path.write_bytes(b"old")
    with pytest.raises(WeightsError, match=reason):
        weights.fetch(path, server + address, "00000000")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file.pth"]


def test_fetch_without_a_connection_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot fetch http://127\.0\.0\.1:9/x") as caught:
        weights.fetch(tmp_path / "x.pth", "http://127.0.0.1:9/x", "00000000")
    assert "\n" not in str(caught.value)
    assert "--inception-weights" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_check_imports_no_torch() -> None:
    code = "import sys, vae.scoring.inception_weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=child_environment(), check=True)


def test_the_command_answers_in_one_line_with_exit_code_2(tmp_path: Path) -> None:
    done = run_door("weights", "check", "--inception-weights", tmp_path / "x.pth")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == f"error: no Inception v3 weights at {tmp_path / 'x.pth'}"
    assert "hint: " in done.stderr


def test_the_command_prints_the_file_and_its_digest(inception_weights: Path) -> None:
    digest = inception_weights.with_name("inception.pth.sha256").read_text().split()[0]
    done = run_door("weights", "check", "--inception-weights", inception_weights)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{inception_weights}  SHA-256 {digest}  unknown weights, not comparable\n"
