"""Why a run is not done and what to do, in one sentence: a pure function of the facts about it.

What nobody knows is called unknown. Words in brackets are SLURM's own, for those who want to look them up.
"""

import re
from typing import NamedTuple

from slurm.diagnose.case import Case
from slurm.diagnose.known_causes import MORE_MEMORY
from slurm.job_states import CANCELLED, GONE, INTERRUPTED, QUEUED, RUNNING, UNKNOWN
from slurm.node.task import JobKind

AGAIN = "run the same launch command again to go on"
NOTHING = "nothing to do"


def explain(case: Case) -> str:
    """`RUN: cause; next step.`, and the last lines of its log where nothing in it is a known error."""
    cause, step = cause_and_step(case)
    shown = case.log_end if is_unexplained(case) else ()
    return "\n".join([f"{case.run}: {cause}; {step}.", *(f"    {line}" for line in shown)])


def cause_and_step(case: Case) -> tuple[str, str]:
    """Why the run is not done, and what to do about it."""
    if case.damage:
        return case.damage, case.fix
    if case.is_done:
        return "is trained and scored", NOTHING
    if case.state in QUEUED:
        return pending(case)
    if case.state in RUNNING:
        return running(case)
    if case.state == UNKNOWN:
        cause = f"squeue does not answer, so nobody knows whether {job_of(case)} is still queued or running"
        return cause, "try again later"
    if case.shards and case.kind is JobKind.TRAIN:
        step = "pack the images again (python jobs/pack.py), or launch with --data SOURCE"
        return case.shards, f"wait for {case.waits_for}" if case.waits_for else step
    if not case.job:
        return without_job(case)
    return ended(case)


def job_of(case: Case) -> str:
    """What the job is called in a sentence."""
    kind = "training" if case.kind is JobKind.TRAIN else "scoring"
    return f"the {kind} process {case.job}" if case.is_local else f"the {kind} job {case.job}"


def is_settled(case: Case) -> bool:
    """Whether nothing that is queued or running will change what there is to say."""
    awaits = case.state in (*RUNNING, *QUEUED, UNKNOWN) or (case.busy and not case.job)
    return case.is_done or not awaits


def is_unexplained(case: Case) -> bool:
    """Whether a job has ended, and neither SLURM nor an error in its logs says why."""
    is_told = case.damage or case.is_done or case.shards or case.cause or case.error
    return not is_told and is_settled(case) and ending_of(case) is None


def without_job(case: Case) -> tuple[str, str]:
    """A run that no job is known for."""
    if case.busy:
        has = "is trained and" if case.kind is JobKind.EVALUATE else "is not trained and"
        return f"{has} waits for its turn after process {case.busy}, which works on this study", NOTHING
    if case.kind is JobKind.EVALUATE:
        return "is trained, but no job to score it was submitted", AGAIN
    if case.was_started:
        return f"stopped{case.progress} and no job of it is known", AGAIN
    return "has not been launched yet", "launch it"


def running(case: Case) -> tuple[str, str]:
    """A job that has its nodes."""
    if case.state == "COMPLETING":
        return f"{job_of(case)} is just ending (COMPLETING)", "look again in a minute"
    if case.state == "SUSPENDED":
        return f"{job_of(case)} is suspended by SLURM (SUSPENDED)", "it goes on by itself"
    doing = "is training" if case.kind is JobKind.TRAIN else "is trained and is being scored"
    where = "" if case.is_local else f" in job {case.job}"
    return f"{doing}{case.progress}{where}", NOTHING


# What SLURM's pending reasons mean, and what to do: `{}` is the folder of the study.
REASONS = {
    "None": ("SLURM has not looked at it yet", "look again in a minute"),
    "Priority": ("other jobs come first", NOTHING),
    "Resources": ("it is next, as soon as enough nodes are free", NOTHING),
    "JobArrayTaskLimit": (
        "as many runs of the study as allowed are running",
        "python jobs/throttle.py {} N allows more at once",
    ),
    "DependencyNeverSatisfied": (
        "it can never start, because the job it waits for has failed",
        "python jobs/cancel.py {}, then run the same launch command again",
    ),
    "JobHeldUser": ("it is held by its owner", "python jobs/throttle.py {} release"),
    "JobHeldAdmin": ("it is held by an administrator", "ask them, or cancel and launch again"),
    "PartitionTimeLimit": (
        "its time limit is above the partition's, so it never starts",
        "lower *_limit_min in the profile or change the partition, cancel, and launch again",
    ),
    "PartitionNodeLimit": (
        "it asks for more nodes than the partition allows, so it never starts",
        "use fewer --nodes, or another partition; cancel, and launch again",
    ),
    "PartitionDown": ("the partition takes no jobs", "wait for the site, or use another partition"),
    "PartitionInactive": ("the partition starts no jobs", "wait for the site, or use another partition"),
    "BadConstraints": (
        "no node has what it asks for, so it never starts",
        "change gpu_type or constraint in the profile, cancel, and launch again",
    ),
    "NodeDown": ("a node it needs is down", "wait for the site, or cancel and launch again"),
    "Licenses": ("it waits for a licence", NOTHING),
    "Reservation": ("it waits for its reservation to begin", NOTHING),
    "ReservationDeleted": (
        "its reservation is gone, so it never starts",
        "change the profile, cancel, and launch again",
    ),
    "InvalidAccount": ("SLURM does not know its account", "correct account in the profile, cancel, launch"),
    "AccountNotAllowed": (
        "the partition is closed to its account",
        "correct account or partition in the profile, cancel, and launch again",
    ),
    "InvalidQOS": ("SLURM does not know its QOS", "correct qos in the profile, cancel, and launch again"),
    "QOSNotAllowed": (
        "its QOS may not use the partition or account",
        "correct qos in the profile, cancel, and launch again",
    ),
    "ReqNodeNotAvail": (
        "nodes it could use are down, or reserved as for maintenance",
        "wait; if its time limit reaches into a maintenance, a shorter one may start earlier",
    ),
    "job requeued in held state": (
        "SLURM, or somebody, has put it back into the queue and holds it",
        "python jobs/throttle.py {} release",
    ),
    "job requeued in special exit state": (
        "the site has put it back into the queue and holds it, often for an exit code it knows",
        "see its log (python jobs/logs.py), then python jobs/throttle.py {} release",
    ),
    "JobHoldMaxRequeue": (
        "SLURM holds it, because it was started in vain too often",
        "see its log (python jobs/logs.py), then python jobs/throttle.py {} release",
    ),
    "launch failed requeued held": (
        "SLURM could not start it on its node, and holds it",
        "python jobs/throttle.py {} release; tell the site if it happens again",
    ),
}


def pending(case: Case) -> tuple[str, str]:
    """A job that waits: SLURM's reason in plain words."""
    cause, step = pending_reason(case)
    slurms_word = f" ({case.reason})" if case.reason not in ("", "None") else ""
    is_planned = case.start and case.reason in ("Priority", "Resources")
    expected = f" and is expected to start at {case.start}" if is_planned else ""
    waiting = "is queued" if case.kind is JobKind.TRAIN else "is trained and waits for its scores"
    return f"{waiting}{expected}: {cause}{slurms_word}", step.format(case.study)


def pending_reason(case: Case) -> tuple[str, str]:
    """Cause and step of one reason."""
    reason = case.reason or "None"
    if reason == "BeginTime":
        when = f"at {case.start}" if case.start else "later"
        if case.job in case.jobs:
            return f"SLURM delays what was requeued; it restarts {when}", NOTHING
        return f"it starts {when}, not before its begin time", NOTHING
    if reason == "Dependency":
        return f"it waits for {case.waits_for or 'another job, which SLURM does not name'}", NOTHING
    if reason.startswith(("QOS", "Assoc", "Max")) and reason not in REASONS:
        return limit(reason)
    word = reason.split(",")[0]  # `ReqNodeNotAvail, UnavailableNodes:n1`
    return REASONS.get(word, ("SLURM's reason is not one this toolkit knows", "look it up in `man squeue`"))


def limit(reason: str) -> tuple[str, str]:
    """A limit of the QOS or of the account: of this one job, of a budget, or of what runs now."""
    whose = "the QOS" if reason.startswith("QOS") else "the account"
    if re.search("PerJob|PerNode|WallDuration|QOSTimeLimit|Min", reason.replace("Minutes", "")):
        cause = f"it asks for more (or less) than {whose} allows one job, so it never starts"
        return cause, "change --gpus, the limits or qos in the profile, cancel, and launch again"
    if re.search("(?<!Run)Minutes|UsageThreshold|GrpWall", reason, re.IGNORECASE) and "Run" not in reason:
        return f"the time budget of {whose} is used up", "ask the site for more, or use another account"
    return f"{whose} allows no more at once", "it starts when others of its jobs end"


class Ending(NamedTuple):
    """A way in which jobs end."""

    states: tuple[str, ...]
    """What the accounts call it."""
    notice: str
    """What SLURM writes into the log, for where there are no accounts."""
    cause: str
    """`{at}` is how far it was, `{saved}` the step it goes on from, `{notice}` SLURM's own words."""
    step: str = AGAIN


NEVER = "(?!)"  # no notice tells of it
ENDINGS = (
    Ending(
        states=("OUT_OF_MEMORY",),
        notice=NEVER,  # what SLURM writes of it is among the known causes
        cause="ran out of memory{at} (OUT_OF_MEMORY)",
        step=MORE_MEMORY,
    ),
    Ending(
        states=("TIMEOUT", "DEADLINE"),
        notice="DUE TO TIME LIMIT",
        cause="came to its time limit{at} and was not requeued",
        step=f"{AGAIN}; if it happens again, raise {{limit}} or warning_s in the profile",
    ),
    Ending(("NODE_FAIL", "BOOT_FAIL"), "NODE FAILURE", "lost its node{at}"),
    Ending(("PREEMPTED",), "DUE TO PREEMPTION", "was preempted and not requeued{at}"),
    Ending((CANCELLED,), r"CANCELLED AT \S+ \*\*\*", "was cancelled{at}{saved}"),
    Ending((INTERRUPTED,), NEVER, "was interrupted{at}{saved}"),
)
# What only the exit code tells, or srun's notice of one rank.
TERMINATED = Ending((), NEVER, "was asked to end from outside (TERM){at}")
KILLED = Ending(
    states=(),
    notice=NEVER,
    cause="was killed by signal 9{at}{notice}, often because memory ran out",
    step=f"if nobody killed it, {MORE_MEMORY}",
)
# How a shell writes that KILL (9) or TERM (15) ended a process, and how sacct does.
KILL_EXIT, TERM_EXIT = r"(137|9):.*|.*:9", r"(143|15):.*|.*:15"


def ended(case: Case) -> tuple[str, str]:
    """A job that is neither queued nor running, of a run that is not done."""
    job, ending = job_of(case), ending_of(case)
    if ending is None:
        return (f"{job} {case.cause}", case.fix) if case.cause else failed(case, job)
    if case.state == CANCELLED and case.reason:
        return f"{job} was cancelled before it started", AGAIN
    cause = ending.cause.format(
        at=case.progress,
        saved=f", saved at step {case.saved:,}" if case.saved else "",
        notice=f" ({case.notice})" if "Killed" in case.notice else "",
    )
    limit = "train_limit_min" if case.kind is JobKind.TRAIN else "evaluate_limit_min"
    return f"{job} {cause}", ending.step.format(limit=limit)


def ending_of(case: Case) -> Ending | None:
    """How the job ended; None if nothing says so, or an error line says it better."""
    by_state = next((ending for ending in ENDINGS if case.state in ending.states), None)
    is_told = case.state == GONE and case.notice.startswith("*** JOB")  # who cancels it makes ranks complain
    if by_state or ((case.cause or case.error) and not is_told):
        return by_state
    # the accounts know better than an old line in a log
    for ending in ENDINGS if case.state == GONE else ():
        if re.search(ending.notice, case.notice):
            return ending
    # one rank is killed, and srun ends the others; only its own notice says that it was killed
    has_term = re.fullmatch(TERM_EXIT, case.exit)
    if re.fullmatch(KILL_EXIT, case.exit) or ("Killed" in case.notice and (case.state == GONE or has_term)):
        return KILLED
    return TERMINATED if has_term else None


def failed(case: Case, job: str) -> tuple[str, str]:
    """A job that ended by itself before its work was done."""
    read = f"python jobs/logs.py {case.study}/{case.run}"
    look = f"see {read}; {AGAIN}"
    if case.error:
        step = f"fix that (all of it: {read}), then launch again"
        return f"{job} failed{case.progress}: {case.error}", step
    if case.state == GONE:
        why = f" ({case.reason})" if case.reason else ""
        return f"{job} ended before the run was complete, and it is unknown how{why}", look
    if case.state == "COMPLETED" and case.kind is JobKind.EVALUATE:
        return f"is trained, but the scores that {job} wrote are gone or of other weights", AGAIN
    if case.state == "COMPLETED":
        return f"{job} ended well, but the run is not complete{case.progress}", look
    code = case.exit.partition(":")[0]
    exit_code = f" (exit code {code})" if code not in ("", "0") else ""
    return f"{job} ended as {case.state}{exit_code}{case.progress}", look
