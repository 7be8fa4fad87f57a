"""What programs print when they fail on a cluster: patterns, with the cause in plain words and the next step.

SLURM's srun and slurmstepd, the shell, modules (Lmod, Tcl), apptainer, enroot and pyxis, Python, disks, CUDA,
NCCL.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

AGAIN = "launch again; it goes on"
MORE_MEMORY = f"allow more (mem_per_gpu_gb in the profile) and {AGAIN}"
PROFILE = "in the profile, and launch again"
EXAMINE = "python jobs/doctor.py finds out what the nodes have"
OTHER_NODE = f"leave that node out ('extra: {{exclude: NODE}}' in the profile), tell the site, and {AGAIN}"
NETWORK = f"{AGAIN}; if it comes back, name the nodes' network in setup (export NCCL_SOCKET_IFNAME=...)"
MORE_GPUS = f"launch again with more --gpus, or --run.accumulate 2; {AGAIN.partition('; ')[2]}"


class KnownCause(NamedTuple):
    """One way to fail."""

    pattern: str
    """Found in a line; ends before what varies, for the line itself is shown beside the cause."""
    cause: str
    """As in `the training job 8 CAUSE`."""
    step: str


DISK_FULL = KnownCause(
    r"No space left on device", "found the disk full", f"free space (df -h shows where), then {AGAIN}"
)
# The first that any line matches is taken, so what is a consequence comes after what causes it.
KNOWN = (
    # --- memory of the node
    KnownCause(
        r"[Dd]etected \d+ oom[-_ ]kill|: Out Of Memory$|[Ee]xceeded (job |step )?memory limit",
        "ran out of memory and was killed",
        MORE_MEMORY,
    ),
    KnownCause(
        r"insufficient shared memory|unable to open shared memory object|: Bus error$",
        "ran out of shared memory (/dev/shm), or lost a file it was reading",
        f"give the container more of it, or {MORE_MEMORY}",
    ),
    KnownCause(
        r"^MemoryError|ArrayMemoryError|bad_alloc|an't allocate memory|Cannot allocate memory",
        "could not get the memory it needs",
        MORE_MEMORY,
    ),
    # --- GPUs
    KnownCause(
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
        "ran out of GPU memory",
        MORE_GPUS,
    ),
    KnownCause(r"Driver/library version mismatch", "met a node whose GPU driver is half updated", OTHER_NODE),
    KnownCause(r"uncorrectable ECC error|ERROR_ECC_UNCORRECTABLE", "met a broken GPU (ECC)", OTHER_NODE),
    KnownCause(
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old"
        r"|no kernel image is available|forward compatibility was attempted|PTX was compiled with an",
        "has a torch that does not fit the node's GPU or NVIDIA driver",
        f"install a torch for that CUDA version, or ask for another gpu_type {PROFILE}",
    ),
    KnownCause(
        r"No CUDA GPUs are available|no CUDA-capable device|Found no NVIDIA driver|CUDA unknown error"
        r"|invalid device ordinal|Failed to initialize NVML",
        "found no usable GPU on its node",
        f"correct gpu_flag or container (apptainer needs --nv) {PROFILE}; {EXAMINE}",
    ),
    KnownCause(
        r"CUDA-capable device\(s\) is/are busy|devices are busy or unavailable",
        "found its GPU taken by another process",
        OTHER_NODE,
    ),
    KnownCause(
        r"CUDA error: (an illegal memory access|unspecified launch failure|device-side assert|misaligned)"
        r"|has fallen off the bus|GPU is lost",
        "failed in the middle of a computation on its GPU",
        f"{AGAIN}; if it happens on the same node again, {OTHER_NODE.partition(', and')[0]}",
    ),
    # --- ranks that talk to each other
    KnownCause(
        r"Duplicate GPU detected", "gave two ranks the same GPU", f"correct gpu_flag {PROFILE}; {EXAMINE}"
    ),
    KnownCause(
        r"Watchdog caught collective operation timeout",
        "waited in vain for another rank (NCCL)",
        f"see what the other ranks wrote (python jobs/logs.py, --rank); {NETWORK}",
    ),
    KnownCause(
        r"ncclSystemError|unhandled system error|NCCL WARN .*(Connect|socket|NET/)|connectFullMesh failed",
        "could not reach the other ranks over the network",
        NETWORK,
    ),
    KnownCause(
        r"ncclRemoteError|remote process exited or there was a network error|Connection closed by peer"
        r"|Connection reset by peer",
        "lost another rank, which ended first",
        f"see what the other ranks wrote (python jobs/logs.py, --rank); {AGAIN}",
    ),
    KnownCause(r"NCCL error|NCCL WARN|nccl\w+Error", "failed in NCCL, by which GPUs talk", NETWORK),
    # --- disks
    DISK_FULL,
    KnownCause(
        r"[Dd]isk quota exceeded",
        "is over its owner's disk quota",
        f"remove what is not needed or ask for more, then {AGAIN}",
    ),
    KnownCause(
        r"Read-only file system",
        "may not write to the disk: it is read-only on the node",
        "keep runs and shards on a disk that nodes may write to (--runs-dir); with a container, bind it",
    ),
    KnownCause(
        r"Stale (NFS )?file handle|Input/output error|Remote I/O error|Transport endpoint is not connected",
        "lost the disk on its node",
        f"{AGAIN}; tell the site if it comes back",
    ),
    KnownCause(
        r"Too many open files", "ran into a limit of open files", f"add 'ulimit -n 4096' to setup {PROFILE}"
    ),
    # --- modules and the setup lines
    KnownCause(
        r"Lmod has detected the following error",
        "could not load a module",
        f"correct it in setup {PROFILE} (module spider NAME shows which there are)",
    ),
    KnownCause(
        r"Unable to locate a modulefile|ModuleCmd_Load",
        "could not load a module",
        f"correct it in setup {PROFILE} (module avail shows which there are)",
    ),
    KnownCause(
        r"\b(module|ml): command not found",
        "found no command `module` on its node",
        f"begin setup with the line that makes it, often 'source /etc/profile.d/modules.sh', {PROFILE}",
    ),
    # --- containers
    KnownCause(
        r"FATAL:\s+.*(could not open image|image .*(not found|no such file))|stat .*\.sif: no such file",
        "found no container image there",
        f"correct its path in container {PROFILE}; nodes must see it",
    ),
    KnownCause(
        r"FATAL:\s+.*executable file not found in \$PATH",
        "found no such program inside its container",
        f"correct python {PROFILE}: its path inside the container",
    ),
    KnownCause(
        r"FATAL:\s+container creation failed|FATAL:\s+While (making|handling|performing|checking)|^FATAL: ",
        "could not start its container",
        f"correct container {PROFILE}; try the same command by hand on a node",
    ),
    KnownCause(
        r"unrecognized option '--container",
        "asked srun for a container, which this site's srun does not know (pyxis)",
        f"leave --container-* out, or use apptainer as container {PROFILE}",
    ),
    KnownCause(
        r"\[ERROR\] (No such file or directory|Invalid image reference)",
        "found no container image there",
        f"correct --container-image {PROFILE}: a file's name begins with / or ./, and nodes must see it",
    ),
    KnownCause(
        r"failed to import docker image|returned error code: 40[134]",
        "could not fetch its container image",
        f"correct its name, sign in to its registry, or name a .sqsh file by its whole path {PROFILE}",
    ),
    KnownCause(
        r"error: pyxis: |enroot-\w+: |spank: required plugin",
        "could not start its container",
        f"correct the container's flags {PROFILE}; try the same srun by hand",
    ),
    # --- Python, and what it imports
    KnownCause(
        r"No module named ",
        "runs a Python that lacks a module",
        f"install the toolkit (pip install -e .) in that Python, or correct python or setup {PROFILE}",
    ),
    KnownCause(
        r"version `(GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found",
        "runs a Python that was built for a newer system than its node's",
        f"install it on a node, or use a container {PROFILE}",
    ),
    KnownCause(
        r"cannot open shared object file",
        "lacks a library on its node",
        f"load the module that has it (setup), or correct python {PROFILE}",
    ),
    KnownCause(
        r": Illegal instruction$",
        "runs a program that was built for another kind of processor",
        f"install Python's packages on a node, or choose other nodes by constraint {PROFILE}",
    ),
    KnownCause(
        r"^task: line \d+: (exec: )?\S+: (not found|No such file|cannot execute|Permission|Is a directory)"
        r"|execve\(\): ",
        "found no such program on its node (Python, or what starts the container)",
        f"correct python or container {PROFILE}; {EXAMINE}",
    ),
    KnownCause(
        r"slurm_script: line \d+: .*(command not found|No such file or directory|Permission denied)",
        "failed in one of its setup lines",
        f"correct setup {PROFILE}; {EXAMINE}",
    ),
    KnownCause(
        r"Permission denied|\[Errno 13\]",
        "may not use a file or folder",
        f"have its owner allow it to you on the nodes, too, then {AGAIN}",
    ),
    # --- SLURM itself
    KnownCause(
        r"[Ii]nvalid generic resource|Step requested GRES but job doesn't have GRES",
        "asked for GPUs (gres) that it was not given",
        f"correct gpu_type or gpu_flag, or an --gres or SLURM_GRES of your own, {PROFILE} (sinfo -o '%P %G' "
        "shows what there is)",
    ),
    KnownCause(
        r"Could not open std(out|err) file|Slurmd could not connect IO|couldn't chdir to|IO setup failed",
        "did not find its folder on its node",
        "launch with --runs-dir on a disk that all nodes share",
    ),
    KnownCause(
        r"set by two different environment variables|CPU binding outside of job step",
        "inherited settings of srun that contradict each other",
        f"unset those variables in setup {PROFILE}",
    ),
    KnownCause(
        r"[Ii]nvalid job credential|[Cc]redential (expired|replayed)|Munge (de|en)code failed",
        "was refused by its node's SLURM (credentials or a clock)",
        OTHER_NODE,
    ),
    KnownCause(
        r"Task launch for .* failed on node|Communication connection failure|[Pp]rolog (failed|hung)",
        "could not be started by SLURM on its node",
        OTHER_NODE,
    ),
    KnownCause(
        r"Unable to contact slurm controller|Socket timed out on send/recv|Zero Bytes were transmitted",
        "lost contact with SLURM's controller",
        AGAIN,
    ),
    KnownCause(
        r"Unable to create step|Unable to allocate resources",
        "was not allowed to start its processes by SLURM",
        f"correct what srun is given (extra, and SLURM_* in setup) {PROFILE}",
    ),
    KnownCause(
        r": Segmentation fault$|Fatal Python error", "crashed", f"{AGAIN}; if it crashes again, report it"
    ),
)
TABLE = tuple((re.compile(known.pattern), known) for known in KNOWN)
ANY = re.compile("|".join(known.pattern for known in KNOWN))  # most lines match none


def find_cause(lines: Iterable[str]) -> tuple[KnownCause, str] | None:
    """The first entry of the table that a line matches, and that line; None if none does."""
    lines = [line for line in lines if line.strip()]
    candidates = [number for number, line in enumerate(lines) if ANY.search(line)]
    for pattern, known in TABLE:
        for number in candidates:
            if pattern.search(lines[number]):
                goes_on = lines[number].rstrip().endswith(":")
                return known, " ".join(lines[number : number + 1 + goes_on])
    return None
