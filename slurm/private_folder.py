"""Folders whose content is run or unpickled: nobody but their owner, who is this user, may write into them.

Who can write a pickle into a study's `jobs/` runs code as whoever runs its jobs, because submitit unpickles
there. So the launcher makes such folders private and refuses those of others, and every process of a job
looks again before submitit unpickles (slurm/code_snapshot.py names CheckedJobs to submitit).
"""

import os
import stat
import sys
from pathlib import Path

from data_prep.errors import ClusterError

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> Path:
    """Make a folder, or one that is there, this user's alone; ClusterError if that cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)
    return check_private(folder)


def check_private(folder: Path) -> Path:
    """The folder; ClusterError if others than this user may write into it."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        whose = f"{folder} belongs to user {found.st_uid}, not to user {os.geteuid()} who runs this"
        hint = "code in it would run as you: launch in a study of your own, or have its owner launch"
        raise ClusterError(whose, hint)
    if found.st_mode & OTHERS_MAY_WRITE:
        open_to = (
            f"others may write into {folder} (mode {stat.S_IMODE(found.st_mode):o}), and so run code as you"
        )
        raise ClusterError(open_to, f"see that all in it is yours, then: chmod 700 {folder}")
    return folder


class CheckedJobs:
    """What submitit takes for one more kind of cluster, and asks whether it is on it, before it unpickles."""

    def __init__(self) -> None:
        """End this process if it is about to unpickle from a folder that is not private."""
        folder = os.environ.get("SUBMITIT_FOLDER")
        try:
            if folder:
                check_private(Path(folder))
        except (ClusterError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    @staticmethod
    def name() -> str:
        """Unlike any cluster's."""
        return "checked-jobs"

    @staticmethod
    def activated() -> bool:
        """Never: it only wants to be asked."""
        return False
