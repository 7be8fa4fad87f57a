"""The case of a run: all the facts that say why it is not done."""

from dataclasses import dataclass

from slurm.node.task import JobKind


@dataclass(frozen=True)
class Case:
    run: str
    study: str
    """The study's folder, as one would type it in a command."""
    kind: JobKind = JobKind.TRAIN
    """The job that is due next: train, or evaluate when the run is trained."""
    is_done: bool = False
    was_started: bool = False
    """It has trained at least for a moment."""
    job: str = ""
    """Id of the newest job of that kind, as in `8_0`; empty if there never was one."""
    is_local: bool = False
    state: str = ""
    reason: str = ""
    """That job's state and why it is pending, as in `job_states.JobState`."""
    start: str = ""
    """When SLURM means to start it, as in `16:45`."""
    exit: str = ""
    """Exit code and signal, as sacct writes them: `1:0`."""
    jobs: tuple[str, ...] = ()
    """The jobs that have begun to train it; if `job` is one of them and queued, it was requeued."""
    waits_for: str = ""
    """The job it depends on and what that is doing."""
    progress: str = ""
    """How far it is, as in `at step 250 of 1,000`."""
    saved: int = 0
    """The newest step that the training can go on from."""
    error: str = ""
    """The last error line of its newest log."""
    cause: str = ""
    """The known failure that its logs tell of, as in `ran out of GPU memory: ...`; `fix` goes with it."""
    log_end: tuple[str, ...] = ()
    """The last lines of its newest log."""
    notice: str = ""
    """The last line SLURM itself wrote into the job's log, as in `... CANCELLED DUE TO TIME LIMIT`."""
    busy: str = ""
    """Id of the process on this machine that works on any run of the study; the others have their turn."""
    shards: str = ""
    """What is wrong with the packed images; empty if nothing is."""
    damage: str = ""
    """Which file of the run is not what this toolkit has written, and why; empty if all are."""
    fix: str = ""
    """What to do about the damage, or the cause."""
