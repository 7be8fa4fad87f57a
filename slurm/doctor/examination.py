"""The examination: which checks are made of this machine, its SLURM and its nodes, one part after another."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import SettingsError, ToolkitError
from data_prep.manifest import MANIFEST_FILE
from slurm import client
from slurm.doctor.check import Check, Verdict, fail, ok
from slurm.doctor.machine_checks import check_machine, check_slurm, file_system, guess_shared
from slurm.doctor.node_checks import check_probe
from slurm.doctor.probe import probe_resources, run_probe
from slurm.doctor.profile_draft import draft_profile, profile_text, write_draft
from slurm.doctor.site import ask_site
from slurm.doctor.site_checks import check_site
from slurm.node.task import JobKind, TrainTask
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile
from slurm.submit import check_accepted
from vae.provenance import REPOSITORY, versions


@dataclass(frozen=True)
class Examination:
    profile: ClusterProfile
    needs_slurm: bool
    """Whether it is a failure that this machine has no SLURM."""
    runs_dir: Path
    data: Path | None = None
    """Packed images for the probe to read."""
    probe_wait_min: int = 0
    """How long the probe may wait to start; 0 = no probe."""
    draft_path: Path | None = None
    """Where to write a profile drafted from what SLURM says, and to go by it; None = nowhere."""


def find_shards(data: Path | None, shards_dir: Path) -> Path | None:
    """The packed images asked for (SettingsError if there are none), else the first below `shards_dir`."""
    if data is None:
        return next((path.parent for path in sorted(shards_dir.glob(f"*/{MANIFEST_FILE}"))), None)
    if not (data / MANIFEST_FILE).exists():
        raise SettingsError(f"{data} holds no packed images", "give --data a folder that jobs/pack.py made")
    return data


def examine(exam: Examination) -> Iterator[tuple[str, list[Check]]]:
    """Title and checks of each part as soon as it is examined; then writes the draft, and raises as that."""
    # this machine
    site, runs_dir = ask_site(), exam.runs_dir.absolute()
    checks = check_machine(runs_dir, with_gpus=not (client.has_programs() or exam.needs_slurm))
    is_writable = {check.name: check.verdict for check in checks}["runs folder"] is Verdict.OK
    checks = [*checks, check_slurm(client.missing_programs(), site, exam.needs_slurm)]
    if site is not None and not exam.probe_wait_min:
        checks.append(guess_shared(file_system(runs_dir)))
    yield f"this machine, {socket.gethostname()}", checks
    if site is None:
        return

    # its cluster, by the profile given or by a new one
    profile = draft_profile(site, exam.profile) if exam.draft_path else exam.profile
    checks, partition = check_site(site, profile), site.partition(profile.partition)
    resources = probe_resources(partition, profile) if partition else None
    if resources:
        checks.append(check_test_only(profile, resources, runs_dir))
    yield f"SLURM, {site.config.get('ClusterName', '')}", checks
    if exam.probe_wait_min:
        can_submit = is_writable and checks[-1].verdict is Verdict.OK
        yield "the nodes", examine_nodes(exam, runs_dir, profile, resources if can_submit else None)
    if exam.draft_path:
        write_draft(exam.draft_path, profile_text(profile, site))


def check_test_only(profile: ClusterProfile, resources: Resources, runs_dir: Path) -> Check:
    """SLURM takes a training job of this profile (`sbatch --test-only`)."""
    tasks = {0: TrainTask("doctor")}
    request = JobRequest("train", JobKind.TRAIN, runs_dir / "doctor", tasks, resources=resources)
    try:
        check_accepted(request, profile, REPOSITORY)
    except ToolkitError as error:
        return fail(client.SUBMITTER, str(error), "change the profile; see slurm/profiles/example.yaml")
    return ok(client.SUBMITTER, "accepts a training job of this profile (--test-only)")


def examine_nodes(
    exam: Examination, runs_dir: Path, profile: ClusterProfile, resources: Resources | None
) -> list[Check]:
    if resources is None:
        return [fail("job", "not submitted", "fix what failed above first")]
    try:
        probe = run_probe(runs_dir, profile, resources, exam.data, exam.probe_wait_min)
    except ToolkitError as error:
        return [fail("job", str(error), error.hint or "")]
    return check_probe(probe, versions(), runs_dir, profile, exam.data)
