"""The Inception v3 weights file: where it is looked for, how it is checked, how it is fetched.

Imports no torch: the launcher checks the weights before anything is queued.
"""

import logging
import os
import shutil
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from data_prep.errors import SettingsError, WeightsError
from data_prep.files import BLOCK_BYTES, replacing, sha256_file
from vae.study import Study

log = logging.getLogger(__name__)

EXTRACTORS = ("inception", "smoke")

# torchvision's Inception_V3_Weights.DEFAULT. The name carries the first 8 hex digits of the SHA-256,
# which is all that was published and all that torch.hub checks.
FILE_NAME = "inception_v3_google-0cc3c7bd.pth"
SHA256_PREFIX = "0cc3c7bd"
URL = f"https://download.pytorch.org/models/{FILE_NAME}"

FETCH_HINT = "fetch them where there is internet: python jobs/weights.py fetch"
TIMEOUT_S = 30

SMOKE_LABEL = "smoke, not comparable"
UNKNOWN_LABEL = "unknown weights, not comparable"


def locate(inception_weights: str = "") -> Path:
    """The weights file to use, there or not: the one given, else where torch.hub keeps it (TORCH_HOME)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return Path(inception_weights or Path(home, "hub", "checkpoints", FILE_NAME)).expanduser()


def check(study: Study) -> None:
    """Raise SettingsError for an unknown extractor, WeightsError for missing, truncated or other weights."""
    if study.extractor not in EXTRACTORS:
        raise SettingsError(f"unknown extractor {study.extractor!r}; known: {', '.join(EXTRACTORS)}")
    if study.extractor == "inception":
        identify(locate(study.inception_weights))


def identify(path: Path) -> tuple[str, str]:
    """SHA-256 of a weights file, and its label: empty for the published weights.

    Other weights are taken only when the file PATH.sha256 beside them (as `sha256sum PATH` writes it) vouches
    for every byte; their scores carry a label. So a truncated file never passes: that is a WeightsError, as
    is a missing or an unknown one.
    """
    if not path.is_file():
        raise WeightsError(f"no Inception v3 weights at {path}", FETCH_HINT)
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if digest.startswith(SHA256_PREFIX):
        return digest, ""
    try:
        vouched = path.with_name(f"{path.name}.sha256").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        vouched = []
    expected = vouched[0].lower() if vouched else f"{SHA256_PREFIX}..."
    if digest == expected:
        return digest, UNKNOWN_LABEL
    raise WeightsError(
        f"{path} is truncated or holds other weights: its SHA-256 is {digest}, not {expected}",
        f"{FETCH_HINT}; to use weights of your own: sha256sum {path.name} > {path.name}.sha256 beside them",
    )


def fetch(path: Path, url: str = URL, sha256_prefix: str = SHA256_PREFIX) -> str:
    """Download the weights to `path` unless they are there; their SHA-256, or a WeightsError and no file."""
    if path.is_file() and (digest := sha256_file(path)).startswith(sha256_prefix):
        log.info("%s is there already", path)
        return digest
    try:
        with replacing(path) as part:
            _download(url, part)
            digest = sha256_file(part)
            if not digest.startswith(sha256_prefix):
                raise WeightsError(
                    f"{url} gave a file with SHA-256 {digest}, not {sha256_prefix}...; it was not kept",
                    "try again; if it stays so, a proxy answers in place of the server",
                )
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise WeightsError(
            f"cannot fetch {url} to {path}: {reason}",
            f"fetch it on a machine with internet, copy it to {path}, or name it with --inception-weights",
        ) from error
    return digest


def _download(url: str, target: Path) -> None:
    """Copy `url` to `target`, with a bar on a terminal."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
        num_bytes = int(answer.headers.get("Content-Length") or 0)
        log.info("fetching %s (%.0f MB)", url, num_bytes / 1e6)
        console, is_hidden = Console(stderr=True), not sys.stderr.isatty()
        bar = wrap_file(answer, num_bytes, description="weights", console=console, disable=is_hidden)
        with bar as reader:
            shutil.copyfileobj(reader, file, BLOCK_BYTES)
