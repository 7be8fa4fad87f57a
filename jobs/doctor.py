"""Check whether this machine and its cluster are ready for a study, and say what to do about what is not.

Looks at this machine and at what SLURM says. With --probe it also submits a short job, on two nodes where
there are two, and checks what only nodes can show: that they share the runs folder and the Python packages,
see their GPUs and CPUs, find each other, can requeue a job and read packed images. Without SLURM it checks
this machine alone. Nothing stays behind, neither a file nor a job.

Exit code: 0 if nothing failed, 1 if a check failed, 2 if the command itself is wrong.
"""

from __future__ import annotations

import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import _front
from _data import SHARDS_DIR

from data_prep.errors import ClusterError, SettingsError, ToolkitError
from data_prep.shards import MANIFEST_FILE
from slurm.client import has_programs, missing_programs
from slurm.doctor.checks import (
    Check,
    Here,
    check_accepted,
    check_here,
    check_shared_kind,
    check_site,
    check_slurm,
    look_here,
)
from slurm.doctor.node_checks import check_probe, probe_resources
from slurm.doctor.probe import run_probe
from slurm.doctor.profile_draft import draft_profile, new_profile_path, profile_text, write_draft
from slurm.doctor.site import Site, ask_site, first
from slurm.node.task import JobKind, TrainTask
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile, read_profile
from slurm.submit import check_accepted as ask_sbatch

EXAMPLES = """\
  python jobs/doctor.py                                  # this machine, and SLURM if it is there
  python jobs/doctor.py --probe                          # the nodes of the default partition, too
  python jobs/doctor.py --write-profile mysite --probe   # a new cluster: draft its profile, and try it
  python jobs/doctor.py --profile mysite --probe --data shards/chest --wait-min 60
"""


# Column where what was seen begins.
INDENT = 26


@dataclass
class Tally:
    """Prints checks and counts them."""

    ok: int = 0
    warn: int = 0
    fail: int = 0

    def show(self, title: str, checks: Iterable[Check]) -> None:
        """Print checks: verdict, name, what was seen, and below it what to do."""
        print(title)
        for check in checks:
            setattr(self, check.verdict, getattr(self, check.verdict) + 1)
            print(fold(f"{check.verdict:4}  {check.name:18}", check.seen))
            if check.hint:
                print(fold("", f"-> {check.hint}"))
        print(flush=True)


def fold(start: str, text: str) -> str:
    """`start` and `text` in two columns, the second folded where a terminal ends."""
    if not sys.stdout.isatty():
        return f"{start:{INDENT}}{text}"
    width = max(60, shutil.get_terminal_size().columns) - INDENT
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"{start:{INDENT}}" + f"\n{'':{INDENT}}".join(lines)


def build_parser() -> _front.Parser:
    """A handful of flags."""
    parser = _front.Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--profile",
        default="",
        metavar="NAME",
        help="slurm/profiles/NAME.yaml, or a YAML file (default: SLURM's defaults)",
    )
    add("--probe", action="store_true", help="submit a short job that looks at the nodes")
    add(
        "--write-profile",
        default="",
        metavar="NAME",
        help="draft slurm/profiles/NAME.yaml from what SLURM says, and check that; --profile is its base",
    )
    add("--wait-min", type=int, default=10, metavar="N", help="minutes the probe may wait to start")
    add(
        "--data",
        type=Path,
        metavar="SHARDS",
        help=f"packed images for the probe to read (default: the first under {SHARDS_DIR}/, if any)",
    )
    add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where studies are kept")
    return parser


def find_shards(asked: Path | None) -> Path | None:
    """The packed images asked for, or any."""
    if asked is None:
        return next((path.parent for path in sorted(SHARDS_DIR.glob(f"*/{MANIFEST_FILE}"))), None)
    if not (asked / MANIFEST_FILE).exists():
        raise SettingsError(f"{asked} holds no packed images", "give --data a folder that jobs/pack.py made")
    return asked


def refusal(profile: ClusterProfile, resources: Resources, runs_dir: Path) -> str:
    """Why SLURM does not accept a training job of this profile; empty if it does."""
    request = JobRequest(
        "train", JobKind.TRAIN, runs_dir / "doctor", {0: TrainTask("doctor")}, resources=resources
    )
    try:
        ask_sbatch(request, profile, _front.REPOSITORY)
    except ToolkitError as error:
        return str(error)
    return ""


def examine_site(site: Site, profile: ClusterProfile, here: Here, tally: Tally) -> bool:
    """Check what SLURM says; returns whether a probe could be submitted."""
    checks = check_site(site, profile)
    partition = site.partition(first(profile.partition))
    reason = ""
    if partition is not None:
        reason = refusal(profile, probe_resources(partition, profile), here.runs_dir)
        checks.append(check_accepted(reason))
    tally.show(f"SLURM, {site.config.get('ClusterName', '')}", checks)
    return partition is not None and not reason and here.is_writable


def examine_nodes(
    site: Site, profile: ClusterProfile, here: Here, data: Path | None, wait_min: int
) -> list[Check]:
    """Run the probe; returns what it showed."""
    partition = site.partition(first(profile.partition))
    assert partition is not None  # or there is no probe
    resources = probe_resources(partition, profile)
    try:
        probe = run_probe(here.runs_dir, profile, resources, data, wait_min)
    except ToolkitError as error:
        return [Check("job", "fail", str(error), error.hint or "")]
    return check_probe(probe, here, profile, data)


def main() -> int:
    """Look, tell, and count."""
    asked = build_parser().parse_args()
    profile = read_profile(asked.profile)
    path = new_profile_path(asked.write_profile) if asked.write_profile else None
    data = find_shards(asked.data)
    if asked.wait_min < 1:
        raise SettingsError(f"--wait-min {asked.wait_min}; allowed: at least 1")
    if (asked.probe or path) and not has_programs():
        raise ClusterError("no SLURM on this machine (no sbatch)", "run this on a login node of your cluster")
    for number in (signal.SIGTERM, signal.SIGHUP):  # which cancel the probe as Ctrl-C does
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

    tally, site = Tally(), ask_site()
    here = look_here(asked.runs_dir, with_gpus=not (has_programs() or asked.profile))
    checks = [*check_here(here), check_slurm(missing_programs(), site, is_needed=bool(asked.profile))]
    if site is not None and not asked.probe:
        checks.append(check_shared_kind(here))
    tally.show(f"this machine, {here.host}", checks)
    if site is not None:
        if path:
            profile = draft_profile(site, profile)
        can_probe = examine_site(site, profile, here, tally)
        if asked.probe:
            unready = [Check("job", "fail", "not submitted", "mend what failed above first")]
            tally.show(
                "the nodes",
                examine_nodes(site, profile, here, data, asked.wait_min) if can_probe else unready,
            )
        if path:
            write_draft(path, profile_text(profile, site))
            print(f"written: {path}\nto use it: --profile {path.stem}, here and with jobs/launch.py\n")
    print(f"{tally.ok} ok, {tally.warn} warn, {tally.fail} fail")
    return 1 if tally.fail else 0


if __name__ == "__main__":
    _front.run(main)
