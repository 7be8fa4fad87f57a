"""A copy of the code for every launch: jobs run what was launched, whatever is edited while they wait.

runs/<study>/code/<digest>/     the packages, and snapshot.json with the commit and the changes on top of it

The folder's name is a digest of its files, so launches of the same code share one copy. Nobody but its owner
can enter it.
"""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from data_prep.files import for_each_file, fsync_path, temporary_path
from data_prep.json_records import write_record
from slurm.private_folder import make_private
from vae.provenance import REPOSITORY, SNAPSHOT_FILE, code_version
from vae.run_dir import CODE_DIR

log = logging.getLogger(__name__)

PACKAGES = ("data_prep", "vae", "slurm", "jobs")
# Not profiles: jobs read none, and a new one is no other code.
KINDS = (".py", ".sbatch", ".css")
# What submitit takes for an installed plugin beside the code: by it every process of a job checks `jobs/`.
PLUGIN = {
    "cxr_vae_jobs-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: cxr-vae-jobs\nVersion: 1\n",
    "cxr_vae_jobs-1.dist-info/entry_points.txt": (
        b"[submitit]\njob_environment = slurm.private_folder:CheckedJobs\n"
    ),
}


@dataclass(frozen=True)
class Snapshot:
    """Code as it is at one moment, and where a copy of it lies or will lie."""

    folder: Path
    files: dict[str, bytes]
    """Content by path within the repository."""

    def write(self) -> None:
        """Put the copy in its folder unless it is there; a kill leaves either nothing or all of it."""
        make_private(self.folder.parent)
        if self.folder.exists():
            make_private(self.folder)
            return
        if earlier := [path.name for path in self.folder.parent.glob("[0-9a-f]*")]:
            name = self.folder.name
            log.info("the code differs from that of earlier launches: %s is new beside %s", name, earlier)
        part = temporary_path(self.folder)
        try:
            for_each_file(_write_safely, [part / name for name in self.files], self.files.values())
            version = msgspec.structs.replace(code_version(), snapshot=self.folder.name)
            write_record(part / SNAPSHOT_FILE, version)
            part.rename(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        fsync_path(self.folder.parent)


def _write_safely(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    fsync_path(path)


def take_snapshot(study_dir: Path, repository: Path = REPOSITORY) -> Snapshot:
    """The code of `repository` as it is now; nothing is written yet."""
    paths = sorted(chain.from_iterable((repository / package).rglob("*") for package in PACKAGES))
    paths = [path for path in paths if path.suffix in KINDS and path.is_file()]
    files = {str(path.relative_to(repository)): path.read_bytes() for path in paths} | PLUGIN
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return Snapshot(study_dir / CODE_DIR / digest.hexdigest()[:12], files)
