"""Where the time of a run went: in the queue, starting, useful, lost, saving or validating.

Goodput is the share of the allocated time that went into training steps whose results survived:

    goodput = useful time / allocated time

This is what large trainings report as effective training time ("useful training over the elapsed time",
Llama Team, The Llama 3 Herd of Models, 2024, section 3.3.4). An attempt's allocated time begins when the
scheduler gives it nodes, or without a scheduler when training is called, and ends with its last line in
metrics.jsonl. So what a killed attempt did after its last line is not counted, nor are jobs that ended before
they began to train. Steps that no later attempt went back behind count as useful.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain

from vae.events import AnyEvent, by_attempt
from vae.metrics import MetricsLine, StartLine, reached_step
from vae.provenance import Attempt, Work, with_work

# In what is suggested for the next launch: nodes and file systems differ from day to day.
LIMIT_RESERVE, CPU_RESERVE, MEMORY_RESERVE = 1.2, 1.2, 1.3
LIMIT_ROUND_MIN = 15
# A run that has trained for less tells nothing about the next one.
LEAST_TRAINING_S = 60.0


@dataclass(frozen=True)
class Spent:
    """Where the time of an attempt, a run or a study went; None is unknown."""

    wait_s: float | None = 0.0
    """In the queue, from the moment nothing but free nodes was missing; a requeue's delay included."""
    startup_s: float = 0.0
    """From the allocation to the first step: imports, data, model, checkpoint."""
    useful_s: float = 0.0
    """In steps whose results survived."""
    lost_s: float = 0.0
    """In steps that had to be done again."""
    save_s: float = 0.0
    """Standing still to save; what is written beside the steps is not in it."""
    val_s: float = 0.0
    gpu_hours: float = 0.0
    cpu_hours: float | None = 0.0
    """Cores x hours where there was no GPU."""

    @property
    def allocated_s(self) -> float:
        return self.startup_s + self.useful_s + self.lost_s + self.save_s + self.val_s

    @property
    def goodput(self) -> float | None:
        """Useful share of the allocated time, in 0..1; None before anything was allocated."""
        return self.useful_s / self.allocated_s if self.allocated_s else None


@dataclass(frozen=True)
class AttemptSpent:
    """What one attempt did, and what became of it."""

    record: Attempt
    work: Work
    spent: Spent
    steps: int
    steps_lost: int
    """Of these, so many had to be done again."""

    @property
    def processes(self) -> tuple[str, int]:
        """Device, and number of processes."""
        return self.record.device, self.record.world_size


@dataclass(frozen=True)
class Account:
    """The attempts of one run that left times, and how far it is."""

    run: str
    attempts: tuple[AttemptSpent, ...]
    total_steps: int
    steps_left: int
    scoring_gb: float | None = None
    """Peak memory of a process that scored the run, in GiB; None if unknown."""
    kills: int | None = None
    """Attempts that ended neither complete nor after a stop signal; None if events.jsonl does not tell."""

    @property
    def spent(self) -> Spent:
        return total(attempt.spent for attempt in self.attempts)

    @property
    def kills_or_losses(self) -> int:
        """Attempts that were killed; without events, those that lost steps."""
        losses = sum(attempt.steps_lost > 0 for attempt in self.attempts)
        return losses if self.kills is None else self.kills


def total(parts: Iterable[Spent]) -> Spent:
    """The sums; unknown where a part is unknown."""
    rows = list(parts)
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Spent)}
    sums = {name: None if None in cells else math.fsum(cells) for name, cells in columns.items()}
    return Spent(**sums)  # type: ignore[arg-type]  # None only where a part has None


def attempts_spent(attempts: Sequence[Attempt], lines: Sequence[MetricsLine]) -> list[AttemptSpent | None]:
    """What attempts did, oldest first, by lines since a start or save; None for one without times."""
    with_times = [*attempts[:-1], *(with_work(newest, lines) for newest in attempts[-1:])]
    spent, kept_until = [], math.inf
    for attempt in reversed(with_times):
        spent.append(attempt_spent(attempt, kept_until))
        if attempt.from_step is not None:
            kept_until = min(kept_until, attempt.from_step)
    return spent[::-1]


def attempt_spent(attempt: Attempt, kept_until: float) -> AttemptSpent | None:
    """One attempt, of whose steps those up to `kept_until` survived; its pace is taken to be even."""
    work, first = attempt.work, attempt.from_step or 0
    if work is None:
        return None
    begin_s = attempt.allocated_s if attempt.allocated_s is not None else attempt.started_s or work.last_s
    busy_s = work.train_s + work.save_s + work.val_s
    startup_s = max(0.0, work.last_s - begin_s - busy_s)
    # Steps that were done again: exactly none, or all, where that is so.
    steps = max(0, work.reached_step - first)
    steps_lost = steps - min(max(0, kept_until - first), steps)
    lost_s = work.train_s * (steps_lost / steps if steps else 1.0)
    # Devices.
    hours, is_gpu = (startup_s + busy_s) / 3600, attempt.device == "cuda"
    cpu_hours = attempt.world_size * attempt.cpus * hours if attempt.cpus else None
    spent = Spent(
        wait_s=_wait_s(attempt),
        startup_s=startup_s,
        useful_s=work.train_s - lost_s,
        lost_s=lost_s,
        save_s=work.save_s,
        val_s=work.val_s,
        gpu_hours=attempt.world_size * hours if is_gpu else 0.0,
        cpu_hours=0.0 if is_gpu else cpu_hours,
    )
    return AttemptSpent(attempt, work, spent, steps, int(steps_lost))


def _wait_s(attempt: Attempt) -> float | None:
    """Seconds in the queue since it was submitted and its dependencies were met, or since it was requeued."""
    if attempt.allocated_s is None or attempt.submitted_s is None:
        return None
    # what is requeued is "eligible" only after SLURM's own delay of two minutes, which is waiting, too
    eligible_s = 0.0 if attempt.restart else attempt.eligible_s or 0.0
    return max(0.0, attempt.allocated_s - max(attempt.submitted_s, eligible_s))


def goodput(attempts: Sequence[Attempt], lines: Sequence[MetricsLine]) -> float | None:
    """Useful share of a run's allocated time, in 0..1, or None; arguments as for `attempts_spent`."""
    return total(attempt.spent for attempt in attempts_spent(attempts, lines) if attempt).goodput


def account(
    run: str,
    attempts: Sequence[Attempt],
    lines: Sequence[MetricsLine],
    is_done: bool,
    scoring_gb: float | None = None,
    events: Sequence[AnyEvent] = (),
) -> Account:
    """The account of one run; `attempts` and `lines` as for `attempts_spent`, with all lines."""
    total_steps = next((line.total_steps for line in lines if isinstance(line, StartLine)), 0)
    left = 0 if is_done else total_steps - reached_step(lines)
    spent = tuple(attempt for attempt in attempts_spent(attempts, lines) if attempt)
    return Account(run, spent, total_steps, max(0, left), scoring_gb, count_kills(attempts, events))


def count_kills(attempts: Sequence[Attempt], events: Sequence[AnyEvent]) -> int | None:
    """Attempts before the newest that were killed; None if events.jsonl tells of another number."""
    courses = by_attempt(events)
    if len(courses) != len(attempts):
        return None
    return sum(not course.was_signalled for course in courses[:-1])


def suggestions(accounts: Sequence[Account]) -> list[str]:
    """A sentence for each setting that the measured times speak for; none where facts are missing."""
    trained = [run for run in accounts if run.spent.useful_s + run.spent.lost_s >= LEAST_TRAINING_S]
    attempts = list(chain.from_iterable(run.attempts for run in trained))
    scoring_gb = [run.scoring_gb for run in trained if run.scoring_gb is not None]
    return [
        *_suggest_limit(trained),
        *_suggest_process([attempt.work for attempt in attempts], scoring_gb),
        *_suggest_interval(attempts, sum(run.kills_or_losses for run in trained)),
    ]


def _suggest_limit(accounts: Sequence[Account]) -> Iterator[str]:
    unfinished = [run for run in accounts if run.steps_left]
    needs = [need_s(run, run.steps_left or run.total_steps) for run in unfinished or accounts]
    longest_s = max((need for need in needs if need is not None), default=None)
    if longest_s is not None:
        begin = "The longest run still needs about" if unfinished else "The longest run takes about"
        yield (
            f"{begin} {duration(longest_s)}, start-up, saving and validation included: with train_limit_min "
            f"{limit_min(longest_s)} in the profile it fits into one stretch, with {LIMIT_RESERVE - 1:.0%} "
            "in reserve."
        )


def need_s(account: Account, steps: int) -> float | None:
    """Seconds that one attempt of `steps` steps would take at the pace so far; None if there is no pace."""
    # only attempts on the same device and number of processes as the newest tell its pace
    alike = [attempt for attempt in account.attempts if attempt.processes == account.attempts[-1].processes]
    spent, done = total(attempt.spent for attempt in alike), sum(attempt.steps for attempt in alike)
    if not done:
        return None
    startup_s = max(attempt.spent.startup_s for attempt in alike)
    return startup_s + steps * (spent.allocated_s - spent.startup_s) / done


def limit_min(need_s: float) -> int:
    """Time limit in minutes for work of so many seconds: with reserve, in whole quarters of an hour."""
    return LIMIT_ROUND_MIN * math.ceil(LIMIT_RESERVE * need_s / 60 / LIMIT_ROUND_MIN)


def _suggest_process(works: Sequence[Work], scoring_gb: Sequence[float]) -> Iterator[str]:
    """Cores and memory; training and scoring share the memory, so both must have been measured."""
    cores = [work.cores for work in works if work.cores is not None]
    host_gb = [work.host_gb for work in works if work.host_gb is not None]
    if cores:
        yield (
            f"A training process kept {max(cores):.2g} CPU cores busy on average: cpus_per_gpu "
            f"{to_ask_for(max(cores), CPU_RESERVE)} in the profile is enough."
        )
    if host_gb and scoring_gb:
        whole_gb = to_ask_for(max(*host_gb, *scoring_gb), MEMORY_RESERVE)  # GiB, which SLURM calls G
        yield (
            f"A training process took up to {max(host_gb):.2g} GiB of memory and a scoring process "
            f"{max(scoring_gb):.2g} GiB: mem_per_gpu_gb {whole_gb} in the profile is enough."
        )


def to_ask_for(peak: float, reserve: float) -> int:
    """CPU cores or GiB to ask for where a process took so many: with reserve, in whole ones."""
    return max(1, math.ceil(reserve * peak))


def _suggest_interval(attempts: Sequence[AttemptSpent], kills: int) -> Iterator[str]:
    spent = total(attempt.spent for attempt in attempts)
    saves = sum(attempt.work.saves for attempt in attempts)
    if kills and saves:
        best_min = interval_s(spent.save_s / saves, spent.allocated_s / kills) / 60
        yield (
            f"Interruptions without a warning: {kills}; they cost {duration(spent.lost_s)} of training. At "
            f"this rate --run.checkpoint_every_min {max(best_min, 0.1):.1f} loses least, saves included "
            "(Young 1974, Daly 2006)."
        )


def interval_s(save_s: float, between_s: float) -> float:
    """Seconds between saves that cost least, for saves of `save_s` and interruptions every `between_s`.

    sqrt(2 x save_s x between_s): J. W. Young, A first order approximation to the optimum checkpoint interval,
    CACM 17(9), 1974; equal to the leading term of J. T. Daly, A higher order estimate of the optimum
    checkpoint interval for restart dumps, Future Generation Computer Systems 22(3), 2006.
    """
    return math.sqrt(2 * save_s * between_s)


def duration(seconds: float | None) -> str:
    """Seconds as `0.4 s`, `45 s`, `12 min`, `3 h 20 min` or `2 d 3 h`."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
