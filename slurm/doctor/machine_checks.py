"""Checks of the machine that launches: its packages, its runs folder, its GPUs, its SLURM programs."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from slurm import client
from slurm.doctor.check import Check, fail, ok, warn
from slurm.doctor.site import Site
from vae.provenance import versions

# One run of `linear` at 256 px: weights and Adam's two moments, 0.6 GB a checkpoint, three at a time.
LEAST_FREE_GB = 2.0
ENOUGH_FREE_GB = 10.0
# File systems that several machines can share.
SHARED = (
    *("afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "panfs", "pvfs2", "quobyte"),
    *("smb3", "vast", "wekafs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
)


def check_machine(runs_dir: Path, with_gpus: bool) -> list[Check]:
    """What training needs of the machine that launches; `runs_dir` need not exist yet."""
    free_gb = shutil.disk_usage(nearest_folder(runs_dir)).free / 1e9
    checks = [check_packages(versions()), check_runs_folder(runs_dir), check_space(free_gb)]
    return [*checks, check_gpus(visible_gpus())] if with_gpus else checks


def nearest_folder(path: Path) -> Path:
    """The path, or the first above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def is_writable(folder: Path) -> bool:
    """Whether a file can be made there, which only trying shows: quotas, read-only mounts."""
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        return True
    return False


def file_system(folder: Path) -> str:
    """Type of the file system that holds `folder`, as in `nfs4`, from /proc/mounts; empty if unknown."""
    mounts = Path("/proc/mounts")
    rows = map(str.split, mounts.read_text(errors="replace").splitlines() if mounts.exists() else ())
    kinds = {mount.replace("\\040", " "): kind for _, mount, kind, *_ in rows}  # what covers comes later
    above = [mount for mount in kinds if folder.resolve().is_relative_to(mount)]
    return kinds[max(above, key=len)] if above else ""


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs that torch, if it is there, sees; importing it takes seconds."""
    with suppress(ImportError):
        import torch

        return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return ()


def check_packages(installed: dict[str, str]) -> Check:
    missing = [name for name, version in installed.items() if version == "not installed"]
    if missing:
        return fail("packages", f"not installed: {', '.join(missing)}", "pip install -e .")
    names = [f"{name.replace('python', 'Python')} {version}" for name, version in installed.items()]
    return ok("packages", ", ".join(names[:4]) + (", ..." if len(names) > 4 else ""))


def check_runs_folder(runs_dir: Path) -> Check:
    if not is_writable(nearest_folder(runs_dir)):
        return fail("runs folder", f"{runs_dir} cannot be written", "choose another --runs-dir")
    kind = file_system(runs_dir)
    return ok("runs folder", f"{runs_dir}{f' ({kind})' if kind else ''} can be written")


def guess_shared(file_system: str) -> Check:
    """Without a probe, whether nodes share the runs folder can only be guessed from its file system."""
    kind = file_system or "unknown"
    if kind.startswith(SHARED):
        seen = f"{kind} is a file system that nodes can share; --probe shows whether they do"
        return ok("shared folder", seen)
    hint = "see with --probe whether the nodes find this folder, or change --runs-dir"
    return warn("shared folder", f"{kind} is usually one machine's own", hint)


def check_space(free_gb: float, where: str = "") -> Check:
    """There is room for a study's checkpoints."""
    name, seen = "free space", f"{free_gb:,.1f} GB{where}"
    if free_gb < LEAST_FREE_GB:
        return fail(name, seen, f"one run needs {LEAST_FREE_GB:.0f} GB; make room, or another --runs-dir")
    if free_gb < ENOUGH_FREE_GB:
        return warn(name, seen, f"each run needs up to {LEAST_FREE_GB:.0f} GB; count yours")
    return ok(name, seen)


def check_gpus(gpus: tuple[str, ...]) -> Check:
    if not gpus:
        hint = "training here uses the CPU; with a GPU, check its driver and that torch was built for CUDA"
        return warn("GPUs", "torch sees none", hint)
    return ok("GPUs", f"{len(gpus)}: {', '.join(sorted(set(gpus)))}")


def check_slurm(missing: Sequence[str], site: Site | None, is_needed: bool) -> Check:
    """SLURM answers, and none of its programs is missing; where nothing asks for it, all may be."""
    if site is not None:
        version, cluster = site.config.get("SLURM_VERSION", "?"), site.config.get("ClusterName", "?")
        return ok("SLURM", f"{version}, cluster {cluster}")
    if client.SUBMITTER in missing and is_needed:
        return fail("SLURM", "no sbatch on this machine", "run this on a login node of your cluster")
    if client.SUBMITTER in missing:
        return ok("SLURM", "not on this machine: studies run here, with --cluster local")
    if missing:
        hint = "install all of SLURM's client programs, or use a login node of your cluster"
        return fail("SLURM", f"sbatch is here, but not {', '.join(missing)}", hint)
    hint = "try `scontrol ping`; is SLURM_CONF set as on your login nodes?"
    return fail("SLURM", "sbatch is here, but its controller does not answer", hint)
