"""The end of a process that was stopped in the middle, and the requeue that has its job run again."""

import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn

from data_prep.errors import ClusterError
from slurm import client
from slurm.node.environment import Backend, JobEnvironment
from slurm.node.signals import STOP_SIGNAL, StopFlag, ignore_stop_signal

log = logging.getLogger(__name__)


def exit_after_stop(job_env: JobEnvironment, stop: StopFlag) -> NoReturn:
    """End a process that has stopped in the middle and saved all; after a stop signal, the job runs again.

    After TERM, whatever came before it and unless it means preemption, it is for SLURM, or the user who
    cancelled the job, to decide what comes next.
    """
    # not terminated: it was the stop signal, to this rank or to another
    if signal.SIGTERM not in stop.received or is_preempted(job_env):
        requeue_and_exit(job_env, stop.previous_handler)
    if job_env.backend is Backend.DEBUG:
        raise KeyboardInterrupt
    if job_env.backend is Backend.SLURM and job_env.rank > 0:
        sys.exit(0)  # rank 0 may still have to requeue
    sys.exit(128 + signal.SIGTERM)


def is_preempted(job_env: JobEnvironment) -> bool:
    """Whether SLURM ends this job to make room.

    Some sites send TERM then, and not the stop signal. SLURM requeues a job that it has to kill after the
    grace time, but takes one that ends before for failed.
    """
    can_ask = job_env.backend is Backend.SLURM and job_env.rank == 0
    return can_ask and re.search(r"\bPreemptTime=\d", client.show_job(job_env.job) or "") is not None


def requeue_and_exit(job_env: JobEnvironment, previous_handler: object) -> NoReturn:
    """End this process; rank 0 has the job run again. Everything must be saved by now.

    `previous_handler` was there at the start: on this machine submitit's, which tells its controller. SLURM
    is asked here: a job that it is ending already is not requeued, for somebody may have cancelled it.
    """
    ignore_stop_signal()
    if job_env.backend is Backend.DEBUG:
        raise KeyboardInterrupt
    if job_env.rank > 0:
        sys.exit(0)
    try:
        if job_env.backend is Backend.LOCAL and callable(previous_handler):
            previous_handler(STOP_SIGNAL, None)  # checkpoint(), requeue, exit
        client.requeue_unless_ending(job_env.job)
        log.info("requeued job %s, unless it is being ended", job_env.job)
    except ClusterError as error:
        # in a container without SLURM's programs the job's script can, if it is ours: not submitted by hand
        folder = os.environ.get("SUBMITIT_FOLDER")
        if not folder:
            message = f"job {job_env.job} could not be requeued: {error}"
            raise ClusterError(message, "submit it again; it goes on") from error
        log.info("cannot requeue from here (%s); the job's script will", error)
        Path(folder, f"{job_env.job}.requeue").touch()
    sys.exit(1)  # the step must end now, whatever became of the request
