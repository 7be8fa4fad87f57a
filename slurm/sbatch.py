"""The exact text of one batch script and its #SBATCH flags: a pure function of a request and a profile."""

import math
import shlex
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from data_prep.errors import SettingsError
from slurm.node.task import JobKind, PackTask, Task
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile
from vae.run_dir import JOBS_DIR

# USR2, the stop signal, is ignored from the first instruction on, until Python has its handler: otherwise it
# would kill the job while torch is being imported. A trap in the batch script does not reach the tasks.
LAUNCHER = 'bash -c \'trap "" USR2; exec "$@"\' task'

# Some sites warn the script and not its tasks; a shell acts on that only while it waits for a job in the
# background, which the signal interrupts. srun passes it on to the tasks.
PASS_ON = """trap '[ -z "${srun-}" ] || kill -USR2 "$srun"' USR2  # to a script that is warned itself"""
WAIT = """srun=$!
while kill -0 "$srun" 2>/dev/null; do wait "$srun" || :; done
wait "$srun" || code=$?"""

# A task that cannot reach SLURM itself (inside a container, say) leaves a file, and the script requeues it;
# and after 140, the exit code of what USR2 has killed: it came before that first instruction. (Of several
# ranks srun reports 143, because it ends the others; then the next launch goes on.) What SLURM is ending
# already, as after scancel, it does not requeue.
REQUEUE = """\
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
if rm {jobs_dir}/"$job.requeue" 2>/dev/null || [ "${{code:-0}}" -eq 140 ]; then
    scontrol requeue incomplete "$job"
fi
exit "${{code:-0}}"
"""

# Ranks end together; when one has ended well and another has not after this long, it never will.
WAIT_FOR_RANKS_S = 300

# A script names this many of its array tasks.
MAX_NAMED = 12

# The stop signal comes this long before the time limit if no save of the run was ever measured, ...
FIRST_SIGNAL_LEAD_S = 180
# ... else three times as long as the slowest took, and SLURM may be a minute late; but at least so long.
LEAST_SIGNAL_LEAD_S = 120
SIGNAL_SLACK_S = 60
# A limit that leaves less than three times that for work would only restart the job over and over.
LEAST_LIMIT_PER_LEAD = 4


def sbatch_text(request: JobRequest, profile: ClusterProfile, code_dir: Path) -> str:
    """The script of a job that runs the code in `code_dir`; its dependencies, known later, are not in it."""
    for path in (request.folder, code_dir):
        check_path(path)
    code = shlex.quote(str(code_dir))
    flags = [sbatch_flag(name, value) for name, value in sbatch_flags(request, profile).items()]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {describe(request)}",
            *flags,
            "",
            "set -eo pipefail  # a setup line that fails stops the job",
            PASS_ON,
            *profile.setup,
            f"cd {code}  # where Python looks first",
            f'export SUBMITIT_EXECUTOR=slurm PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            f"{srun_command(request, profile)} &",
            WAIT,
            REQUEUE.format(jobs_dir=shlex.quote(str(request.folder / JOBS_DIR))),
        ]
    )


def describe(request: JobRequest) -> str:
    """One line that says what the job is: its work, and which array index means what."""
    if not request.is_array:
        return f"{request.kind} {request.folder.name}"
    names = [f"{index - request.offset} = {array_task_name(task)}" for index, task in request.tasks.items()]
    if len(names) > MAX_NAMED:
        names = [*names[:MAX_NAMED], "..."]
    return f"{request.kind} {request.folder.name}: {', '.join(names)}"


def array_task_name(task: Task) -> str:
    """What one array task works on."""
    if isinstance(task, PackTask):
        return f"part {task.part + 1} of {task.num_parts}"
    return Path(task.path).name


def sbatch_flags(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    """Every flag of the job, by name; an empty value means a bare flag."""
    resources = request.resources or Resources()
    flags = {
        "job-name": request.name,
        "array": array_spec(request) if request.is_array else None,
        "partition": profile.partition if request.resources else profile.cpu_partition or profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": resources.nodes,
        "ntasks-per-node": resources.gpus_per_node,
        profile.gpu_flag: gpu_amount(profile, resources) if request.resources else None,
        "cpus-per-task": cpus_per_task(request, profile),
        "mem": memory(request, profile),
        "time": limit_min(request.kind, profile),
        "signal": f"USR2@{signal_lead_s(request, profile)}",
        "requeue": True,
        "open-mode": "append",  # an attempt adds to the log of the one before
        "kill-on-invalid-dep": "yes",  # or it would wait for ever for a job that has failed
        "output": request.folder / JOBS_DIR / f"{job_pattern(request)}.log",
    }
    given = {name: "" if value is True else str(value) for name, value in flags.items() if value}
    renamed = profile.rename or {}
    wanted = {renamed.get(name, name): value for name, value in given.items() if name not in profile.drop}
    return wanted | {name: str(value) for name, value in (profile.extra or {}).items()}


def sbatch_flag(name: str, value: str) -> str:
    """One #SBATCH line; sbatch splits it at spaces outside quotes."""
    if not value:
        return f"#SBATCH --{name}"
    return f'#SBATCH --{name}="{value}"' if " " in value else f"#SBATCH --{name}={value}"


def job_pattern(request: JobRequest) -> str:
    """What sbatch and srun replace by the id of the job or array task."""
    return "%A_%a" if request.is_array else "%j"


def memory(request: JobRequest, profile: ClusterProfile) -> str:
    """Memory of each node, as in `64G`; empty to take the site's default."""
    gpus = request.resources.gpus_per_node if request.resources else 0
    mem_gb = profile.pack_mem_gb if request.kind is JobKind.PACK else profile.mem_per_gpu_gb * gpus
    return f"{mem_gb}G" if mem_gb else ""


def gpu_amount(profile: ClusterProfile, resources: Resources) -> str:
    """GPUs of each node, as the site's flag wants them: `4`, `a100:4`, `gpu:4` or `gpu:a100:4`."""
    generic = "gpu" if profile.gpu_flag == "gres" else ""
    return ":".join(filter(None, [generic, profile.gpu_type, str(resources.gpus_per_node)]))


def cpus_per_task(request: JobRequest, profile: ClusterProfile) -> int:
    """CPU cores of each process."""
    if request.resources:
        return profile.cpus_per_gpu
    return profile.pack_cpus if request.kind is JobKind.PACK else 1


def limit_min(kind: JobKind, profile: ClusterProfile) -> int:
    """Time limit of one job of that kind, in minutes."""
    if kind in (JobKind.FINALIZE, JobKind.REPORT):
        return profile.report_limit_min
    return int(getattr(profile, f"{kind}_limit_min"))


def signal_lead_s(request: JobRequest, profile: ClusterProfile) -> int:
    """Seconds from the stop signal to the job's time limit; SettingsError if that leaves too few for work."""
    limit_s = 60 * limit_min(request.kind, profile)
    if request.kind is not JobKind.TRAIN:  # it has nothing to save
        return min(profile.warning_s or LEAST_SIGNAL_LEAD_S, limit_s // LEAST_LIMIT_PER_LEAD)
    measured_s = max(LEAST_SIGNAL_LEAD_S, math.ceil(3 * request.stop_s) + SIGNAL_SLACK_S)
    lead_s = profile.warning_s or (measured_s if request.stop_s else FIRST_SIGNAL_LEAD_S)
    if limit_s < LEAST_LIMIT_PER_LEAD * lead_s:
        why = f", because its slowest save took {request.stop_s:.0f} s" if request.stop_s else ""
        late = f"{request.name} gets the stop signal {lead_s} s before it{why}"
        least_min = math.ceil(LEAST_LIMIT_PER_LEAD * lead_s / 60)
        hint = f"allow at least {least_min} minutes, or set a shorter warning_s in the profile"
        raise SettingsError(f"train_limit_min = {limit_s // 60} leaves too little time: {late}", hint)
    return lead_s


def srun_command(request: JobRequest, profile: ClusterProfile) -> str:
    """The job's work: one process per GPU, all of which end when one fails."""
    jobs_dir = request.folder / JOBS_DIR
    srun = [
        "srun",
        "--unbuffered",
        "--open-mode=append",
        "--kill-on-bad-exit=1",
        f"--wait={WAIT_FOR_RANKS_S}",
        # since SLURM 22.05, srun does not take it from sbatch
        f"--cpus-per-task={cpus_per_task(request, profile)}",
        f"--output={jobs_dir}/{job_pattern(request)}_%t.log",
    ]
    python = profile.python or sys.executable
    runner = shlex.join([python, "-u", "-m", "submitit.core._submit", str(jobs_dir)])
    return " \\\n    ".join([shlex.join(srun), LAUNCHER, " ".join(filter(None, [profile.container, runner]))])


def array_spec(request: JobRequest) -> str:
    """The indices of an array, and how many of its tasks may run at once: `0-2,5%2`."""
    indices = [index - request.offset for index in request.tasks]
    return index_list(indices) + (f"%{request.max_parallel}" if request.max_parallel else "")


def index_list(indices: Iterable[int]) -> str:
    """Array indices as sbatch writes them: {0, 1, 2, 5} is `0-2,5`."""
    # along a span, an index and its position in the list differ by the same
    groups = groupby(enumerate(sorted(indices)), key=lambda place: place[1] - place[0])
    spans = [[index for _, index in group] for _, group in groups]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def check_path(path: Path) -> None:
    """Raise SettingsError if sbatch would read `path` as something else: `%` is a pattern, quotes end it."""
    text = str(path)
    bad = sorted({char for char in text if char in "%\"'\\$`#" or not char.isprintable()})
    if bad:
        hint = "use a folder whose name has none of % \" ' \\ $ ` # and no line breaks"
        raise SettingsError(
            f"the path {text!r} holds {', '.join(map(repr, bad))}, which SLURM would misread", hint
        )
