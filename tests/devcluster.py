"""A real two-node SLURM cluster on this machine, for tests and for trying things by hand.

    python tests/devcluster.py up DIR      start it; every file it makes is below DIR
    python tests/devcluster.py env DIR     print the exports that point sbatch at it
    python tests/devcluster.py down DIR    cancel its jobs and stop its daemons, by pid

Two nodes n1 and n2 with 8 claimed CPUs and 4 fake GPUs each, accounting, a preemptible partition
`gpu` and a partition `urgent` that preempts it. Jobs see CUDA_VISIBLE_DEVICES, torch sees no GPU.
Needs root and the packages slurm-wlm, slurmdbd, munge and mariadb-server; their services stay off.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NODES = ("n1", "n2")
GPUS_PER_NODE = 4
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mysql_install_db", "mariadb")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Linux cuts the name of a unix socket at 107 bytes.
MAX_SOCKET_PATH = 107


class Unavailable(RuntimeError):
    """This machine cannot run the cluster; the text says what is missing."""


@dataclass
class DevCluster:
    """The cluster whose files are below `folder`."""

    folder: Path
    has_accounting: bool = True
    settings: str = ""
    """Further lines of slurm.conf."""
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, pointed at the cluster and free of an outer job's variables."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
        # nobody minds how often one's own cluster is asked
        return {**kept, "PATH": path, "SLURM_CONF": str(self.conf), "CXR_SQUEUE_EVERY_S": "0.25"}

    def run(self, *command: str, **options: Any) -> str:
        """Standard output of a command run against the cluster; CalledProcessError if it fails."""
        options = {"check": True, "capture_output": True, "text": True, "timeout": 60, **options}
        return str(subprocess.run(command, env=self.env, **options).stdout)

    def wait_until_idle(self, seconds: float) -> None:
        """Return when no job is queued or running; TimeoutError with the queue after `seconds`."""
        wait_for(lambda: not self.run("squeue", "-h"), seconds, lambda: self.run("squeue", "-r"))

    # --- up ---------------------------------------------------------------------------------

    def up(self) -> None:
        """Start all daemons and return when both nodes are idle (about 5 s)."""
        require(self.has_accounting)
        self.folder.mkdir(parents=True, exist_ok=True)
        if len(str(self.folder / "munge.sock")) > MAX_SOCKET_PATH:
            raise Unavailable(f"{self.folder} is too long a path for unix sockets")
        self.write_files()
        try:
            self.start_munge()
            if self.has_accounting:
                self.start_accounting()
            self.start("slurmctld", ["slurmctld", "-D", "-i"])
            for node in NODES:
                self.start(f"slurmd-{node}", ["slurmd", "-D", "-N", node])
            self.wait("both nodes are idle", self.both_idle)
        except BaseException:
            self.down()
            raise

    def write_files(self) -> None:
        ports = free_ports(2 + len(NODES))
        for name in ("state", "spool", "dev", "log"):
            (self.folder / name).mkdir(exist_ok=True)
        for gpu in range(GPUS_PER_NODE):
            device = self.folder / "dev" / f"gpu{gpu}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))  # a second /dev/null
        lines = "\n".join(
            f"NodeName={node} Name=gpu Type=fake File={self.folder}/dev/gpu[0-{GPUS_PER_NODE - 1}]"
            for node in NODES
        )
        (self.folder / "gres.conf").write_text(lines + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self.conf.write_text(slurm_conf(self.folder, ports, self.has_accounting) + self.settings)
        dbd = self.folder / "slurmdbd.conf"
        dbd.write_text(slurmdbd_conf(self.folder, ports[1]))
        dbd.chmod(0o600)
        key = self.folder / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)

    def start_munge(self) -> None:
        names = {"socket": "sock", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in names.items()]
        log = f"--log-file={self.folder}/log/munged.log"
        self.start("munged", ["munged", "--foreground", "--force", *options, log])
        self.wait("munge answers", (self.folder / "munge.sock").is_socket)

    def start_accounting(self) -> None:
        data, sock = self.folder / "db", self.folder / "db.sock"
        if not data.exists():
            install = ["mysql_install_db", "--no-defaults", "--user=root", f"--datadir={data}"]
            self.run(*install, "--auth-root-authentication-method=normal", "--skip-test-db")
        places = [f"--datadir={data}", f"--socket={sock}", f"--pid-file={self.folder}/db.pid"]
        self.start("mariadbd", ["mariadbd", "--no-defaults", "--user=root", "--skip-networking", *places])
        ask = ("mariadb", "--no-defaults", f"--socket={sock}", "-e")
        create = "CREATE DATABASE IF NOT EXISTS slurm_acct_db"
        self.wait("the database answers", lambda: self.succeeds(*ask, create))
        self.start("slurmdbd", ["slurmdbd", "-D"])
        self.wait("accounting answers", lambda: self.succeeds("sacctmgr", "-n", "show", "cluster"))
        self.succeeds("sacctmgr", "-i", "add", "cluster", "dev")

    def start(self, name: str, command: list[str]) -> None:
        """Start one daemon in the foreground of its own session, its output in log/<name>.out."""
        env = {**self.env, "MYSQL_UNIX_PORT": str(self.folder / "db.sock")}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            daemon = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pids[name] = daemon.pid
        (self.folder / "pids.json").write_text(json.dumps(self.pids))

    def wait(self, what: str, is_true: Callable[[], bool]) -> None:
        def complaint() -> str:
            tails = [path.read_text(errors="replace")[-800:] for path in self.folder.glob("log/*")]
            return f"waited in vain until {what}\n" + "\n".join(tails)

        wait_for(is_true, 60, complaint)

    def succeeds(self, *command: str) -> bool:
        return subprocess.run(command, env=self.env, capture_output=True).returncode == 0

    def both_idle(self) -> bool:
        asked = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T"], env=self.env, capture_output=True, text=True
        )
        return asked.stdout.split() == [word for node in NODES for word in (node, "idle")]

    # --- down -------------------------------------------------------------------------------

    def down(self) -> None:
        """Cancel all jobs, stop all daemons and end what jobs left behind."""
        if "slurmctld" in self.pids and is_alive(self.pids["slurmctld"]):
            names = "PENDING", "RUNNING", "SUSPENDED"
            for state in names:
                self.succeeds("scancel", f"--state={state}", "--user=root")
            give_up = time.monotonic() + 10
            while time.monotonic() < give_up and self.left_behind():
                time.sleep(0.1)
        for name in [*(f"slurmd-{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            if name in self.pids:
                stop(self.pids.pop(name))
        for pid in self.left_behind():
            stop(pid)
        (self.folder / "pids.json").unlink(missing_ok=True)

    def left_behind(self) -> list[int]:
        """Processes of this cluster's jobs: its slurmstepds and what runs inside a job."""
        mark = f"SLURM_CONF={self.conf}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "environ").read_bytes().split(b"\0")
                name = (process / "comm").read_text()
            except OSError:  # it has just ended
                continue
            in_job = name.startswith("slurmstepd") or any(w.startswith(b"SLURM_JOB_ID=") for w in words)
            if mark in words and in_job and int(process.name) != os.getpid():
                found.append(int(process.name))
        return found


def require(with_accounting: bool = True) -> None:
    """Raise Unavailable, naming what is missing, if this machine cannot run the cluster."""
    needed = PROGRAMS + (ACCOUNTING_PROGRAMS if with_accounting else ())
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    missing = [name for name in needed if shutil.which(name, path=path) is None]
    if missing:
        raise Unavailable(
            f"not installed: {', '.join(missing)}; "
            "apt-get install -y --no-install-recommends slurm-wlm slurmdbd munge mariadb-server"
        )
    if os.geteuid() != 0:
        raise Unavailable("the test cluster's daemons need root")


def slurm_conf(folder: Path, ports: list[int], has_accounting: bool) -> str:
    host = socket.gethostname()
    controller, database, *nodes = ports
    node_lines = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
        f"CPUs=8 RealMemory=16000 Gres=gpu:fake:{GPUS_PER_NODE}"
        for node, port in zip(NODES, nodes, strict=True)
    )
    accounting = "AccountingStorageType=accounting_storage/none"
    if has_accounting:
        accounting = (
            "AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={database}\n"
            f"AccountingStoragePass={folder}/munge.sock\n"
            "JobAcctGatherType=jobacct_gather/linux"
        )
    # cred_expire=5: SLURM holds a requeued job that long (120 s by default)
    return f"""\
ClusterName=dev
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
GresTypes=gpu
{accounting}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
SlurmdTimeout=20
{node_lines}
PartitionName=gpu Nodes={",".join(NODES)} Default=YES PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes={",".join(NODES)} PriorityTier=10 PreemptMode=OFF
"""


def slurmdbd_conf(folder: Path, port: int) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


def free_ports(count: int) -> list[int]:
    """Free TCP ports below Linux's ephemeral range, so that no outgoing connection takes them."""
    held: list[socket.socket] = []
    while len(held) < count:
        probe = socket.socket()
        try:
            probe.bind(("", random.SystemRandom().randrange(20_000, 32_000)))
            held.append(probe)
        except OSError:
            probe.close()
    ports = [probe.getsockname()[1] for probe in held]
    for probe in held:
        probe.close()
    return ports


def wait_for(is_true: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Return when `is_true()`; TimeoutError with `complaint()` after `seconds`."""
    give_up = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > give_up:
            raise TimeoutError(f"after {seconds} s: {complaint()}")
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Whether a process runs; our own dead children are reaped on the way."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def stop(pid: int) -> None:
    """End one process: TERM, then KILL after 5 s."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        give_up = time.monotonic() + 5
        while is_alive(pid):
            if time.monotonic() > give_up:
                break
            time.sleep(0.05)
        else:
            return


def load(folder: Path) -> DevCluster:
    """The cluster that an earlier `up` started in `folder`."""
    try:
        pids = json.loads((folder / "pids.json").read_text())
    except FileNotFoundError:
        pids = {}
    return DevCluster(folder, pids=pids)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """One running cluster for all tests of a session; they skip where it cannot run, which CI forbids."""
    yield from running(DevCluster(tmp_path_factory.mktemp("slurm")))


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Another one: no accounts, short arrays, nothing is requeued unasked, no warning before preemption."""
    settings = "MaxArraySize=3\nJobRequeue=0\nSlurmctldParameters=idle_on_node_suspend\n"
    yield from running(DevCluster(tmp_path_factory.mktemp("bare"), has_accounting=False, settings=settings))


def running(dev: DevCluster) -> Iterator[DevCluster]:
    """The cluster while it is up."""
    try:
        require(dev.has_accounting)
    except Unavailable as error:
        pytest.skip(str(error))
    with (Path(tempfile.gettempdir()) / "devcluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two databases that are installed at once get in each other's way
        dev.up()
    yield dev
    dev.down()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("action", choices=("up", "down", "env"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-accounting", action="store_true", help="a site without sacct")
    asked = parser.parse_args()
    dev = load(asked.folder.resolve())
    dev.has_accounting = not asked.no_accounting
    try:
        if asked.action == "up":
            dev.up()
        elif asked.action == "down":
            dev.down()
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.action != "down":
        print(f"export SLURM_CONF={shlex.quote(str(dev.conf))}")
        print('export PATH="$PATH:/usr/sbin:/sbin" CXR_SQUEUE_EVERY_S=1')
    return 0


if __name__ == "__main__":
    sys.exit(main())
