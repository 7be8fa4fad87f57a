"""Where the time of a run went: in the queue, starting, useful, lost, saving or validating.

Goodput is the share of the allocated time that went into training steps whose results survived:

    goodput = useful time / allocated time

This is what large trainings report as effective training time ("useful training over the elapsed time",
Llama Team, The Llama 3 Herd of Models, 2024, section 3.3.4). An attempt's allocated time begins when the
scheduler gives it nodes, or without a scheduler when training is called, and ends with its last line in
metrics.jsonl. So what a killed attempt did after its last line is not counted, nor are jobs that ended before
they began to train. Steps that no later attempt went back behind count as useful.

The facts are the attempts in provenance.json and the lines of metrics.jsonl. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

# Lines from which an attempt's sums can be taken up, so that the end of a long file is enough.
MARKS = ("start", "save")
SUMS = {"train_s": 0.0, "save_s": 0.0, "saves": 0, "val_s": 0.0}
PEAKS = ("cores", "host_gb", "gpu_gb")

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
class Attempt:
    """What one attempt did."""

    spent: Spent
    first_step: int
    steps: int
    """Steps it took, ..."""
    steps_lost: int
    """... of which so many had to be done again."""
    saves: int
    place: tuple[str, int]
    """Device and number of processes."""
    peaks: dict[str, float]
    """Of rank 0 as of its last save: `cores` kept busy on average, peak `host_gb` and `gpu_gb` in GiB."""


@dataclass(frozen=True)
class Account:
    """The attempts of one run that left times, and how far it is."""

    run: str
    attempts: tuple[Attempt, ...]
    total_steps: int
    steps_left: int
    scoring_gb: float | None = None
    """Peak memory of a process that scored the run, in GiB; None if unknown."""

    @property
    def spent(self) -> Spent:
        return total(attempt.spent for attempt in self.attempts)


def total(parts: Iterable[Spent]) -> Spent:
    """The sums; unknown where a part is unknown."""
    rows = list(parts)

    def added(name: str) -> Any:
        values = [getattr(row, name) for row in rows]
        return None if None in values else math.fsum(values)

    return Spent(**{field.name: added(field.name) for field in fields(Spent)})


# --- from the files --------------------------------------------------------------------------


def work(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the newest attempt did, from the last lines of metrics.jsonl; empty if they do not say.

    `train_s`, `save_s` and `val_s` are seconds from its start line to its last line, `last_s`.
    """
    places = [place for place, line in enumerate(lines) if line.get("kind") in MARKS]
    if not places:
        return {}
    mark, after = lines[places[-1]], lines[places[-1] + 1 :]
    sums = SUMS if mark["kind"] == "start" else {name: mark[name] for name in SUMS if name in mark}
    if len(sums) < len(SUMS):
        return {}
    last, val_s = lines[-1], sum(line.get("val_seconds", 0.0) for line in after)
    return {
        "reached_step": last["step"],
        "last_s": last["time"],
        "train_s": round(sums["train_s"] + last["time"] - mark["time"] - val_s, 3),
        "save_s": sums["save_s"],
        "saves": sums["saves"],
        "val_s": round(sums["val_s"] + val_s, 3),
        **{name: mark[name] for name in PEAKS if name in mark},
    }


def with_work(attempt: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The newest attempt of provenance.json and what it did, if the end of metrics.jsonl is its own."""
    if "work" in attempt or not lines or lines[-1].get("time", 0) < attempt.get("started_s", math.inf):
        return attempt
    return {**attempt, "work": work(lines)}


def attempts(known: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> list[Attempt | None]:
    """The attempts of provenance.json, oldest first; None for one that left no times.

    Args:
        known: provenance.json's `attempts`.
        lines: metrics.jsonl, or at least its end from the last start or save line on.
    """
    if not known:
        return []
    told = [*known[:-1], with_work(known[-1], lines)]
    resumed = [one.get("from_step", math.inf) for one in told]
    return [_attempt(one, min(resumed[place + 1 :], default=math.inf)) for place, one in enumerate(told)]


def _attempt(known: dict[str, Any], kept_until: float) -> Attempt | None:
    """One attempt, of whose steps those up to `kept_until` survived; its pace is taken to be even."""
    did, first = known.get("work"), known.get("from_step", 0)
    if not did:
        return None
    begin_s = known.get("allocated_s", known["started_s"])
    train_s, save_s, val_s = did["train_s"], did["save_s"], did["val_s"]
    startup_s = max(0.0, did["last_s"] - begin_s - train_s - save_s - val_s)
    steps = max(0, did["reached_step"] - first)
    kept = min(max(0, kept_until - first), steps)
    lost_s = train_s * ((steps - kept) / steps if steps else 1.0)  # exactly none, or all, where that is so
    hours = (startup_s + train_s + save_s + val_s) / 3600
    device, world_size, cpus = known.get("device", ""), known.get("world_size", 1), known.get("cpus")
    is_gpu = device == "cuda"
    spent = Spent(
        wait_s=_wait_s(known),
        startup_s=startup_s,
        useful_s=train_s - lost_s,
        lost_s=lost_s,
        save_s=save_s,
        val_s=val_s,
        gpu_hours=world_size * hours if is_gpu else 0.0,
        cpu_hours=0.0 if is_gpu else world_size * cpus * hours if cpus else None,
    )
    peaks = {name: did[name] for name in PEAKS if name in did}
    return Attempt(spent, first, steps, int(steps - kept), did["saves"], (device, world_size), peaks)


def _wait_s(known: dict[str, Any]) -> float | None:
    """Seconds in the queue since it was submitted and its dependencies were met, or since it was requeued."""
    if "allocated_s" not in known or "submitted_s" not in known:
        return None
    # what is requeued is "eligible" only after SLURM's own delay of two minutes, which is waiting, too
    eligible_s = 0.0 if known.get("restart") else known.get("eligible_s", 0.0)
    return max(0.0, known["allocated_s"] - max(known["submitted_s"], eligible_s))


def goodput(known: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> float | None:
    """Useful share of a run's allocated time, in 0..1, or None; arguments as for `attempts`."""
    return total(one.spent for one in attempts(known, lines) if one).goodput


def account(
    run: str,
    known: Sequence[dict[str, Any]],
    lines: Sequence[dict[str, Any]],
    is_done: bool,
    scoring_gb: float | None = None,
) -> Account:
    """The account of one run; `known` and `lines` as for `attempts`, with all lines."""
    start = next((line for line in lines if line.get("kind") == "start"), {"total_steps": 0})
    steps = start["total_steps"]
    left = 0 if is_done else steps - (lines[-1]["step"] if lines else 0)
    found = tuple(one for one in attempts(known, lines) if one)
    return Account(run, found, steps, max(0, left), scoring_gb)


# --- what to ask for next time ---------------------------------------------------------------


def suggestions(accounts: Sequence[Account]) -> list[str]:
    """A sentence for each setting that the measured times speak for; none where facts are missing."""
    told = [one for one in accounts if one.spent.useful_s + one.spent.lost_s >= LEAST_TRAINING_S]
    makers = (_suggest_limit, _suggest_cpus, _suggest_memory, _suggest_interval)
    return [sentence for make in makers if (sentence := make(told))]


def _suggest_limit(accounts: Sequence[Account]) -> str:
    unfinished = [one for one in accounts if one.steps_left]
    needs = [
        need
        for one in unfinished or accounts
        if (need := need_s(one, one.steps_left or one.total_steps)) is not None
    ]
    if not needs:
        return ""
    longest = f"{duration(max(needs))}, start-up, saving and validation included"
    begin = "The longest run still needs about" if unfinished else "The longest run takes about"
    return (
        f"{begin} {longest}: with train_limit_min {limit_min(max(needs))} in the profile it fits into one "
        f"stretch, with {LIMIT_RESERVE - 1:.0%} in reserve."
    )


def need_s(one: Account, steps: int) -> float | None:
    """Seconds that one attempt of `steps` steps would take at the pace so far; None if there is no pace.

    Only attempts on the same device and number of processes as the newest tell its pace.
    """
    alike = [attempt for attempt in one.attempts if attempt.place == one.attempts[-1].place]
    spent, done = total(attempt.spent for attempt in alike), sum(attempt.steps for attempt in alike)
    if not done:
        return None
    startup_s = max(attempt.spent.startup_s for attempt in alike)
    return startup_s + steps * (spent.allocated_s - spent.startup_s) / done


def limit_min(need_s: float) -> int:
    """Time limit in minutes for work of so many seconds: with reserve, in whole quarters of an hour."""
    return LIMIT_ROUND_MIN * math.ceil(LIMIT_RESERVE * need_s / 60 / LIMIT_ROUND_MIN)


def _suggest_cpus(accounts: Sequence[Account]) -> str:
    if not (cores := _peaks(accounts, "cores")):
        return ""
    return (
        f"A training process kept {max(cores):.2g} CPU cores busy on average: cpus_per_gpu "
        f"{cpus_per_process(max(cores))} in the profile is enough."
    )


def cpus_per_process(cores: float) -> int:
    """CPU cores to ask for where so many were busy on average."""
    return max(1, math.ceil(CPU_RESERVE * cores))


def _suggest_memory(accounts: Sequence[Account]) -> str:
    """Training and scoring share the setting, so both must have been measured."""
    training = _peaks(accounts, "host_gb")
    scoring = [one.scoring_gb for one in accounts if one.scoring_gb is not None]
    if not training or not scoring:
        return ""
    return (
        f"A training process took up to {max(training):.2g} GiB of memory and a scoring process "
        f"{max(scoring):.2g} GiB: mem_per_gpu_gb {memory_gb(max(training + scoring))} in the profile is "
        "enough."
    )


def memory_gb(peak_gb: float) -> int:
    """Memory to ask for where a process took so much, in whole GiB (which SLURM calls G)."""
    return max(1, math.ceil(MEMORY_RESERVE * peak_gb))


def _peaks(accounts: Sequence[Account], name: str) -> list[float]:
    return [one.peaks[name] for account in accounts for one in account.attempts if name in one.peaks]


def _suggest_interval(accounts: Sequence[Account]) -> str:
    tries = [one for account in accounts for one in account.attempts]
    spent, saves = total(one.spent for one in tries), sum(one.saves for one in tries)
    losses = sum(one.steps_lost > 0 for one in tries)
    if not losses or not saves:
        return ""
    best_min = interval_s(spent.save_s / saves, spent.allocated_s / losses) / 60
    return (
        f"Interruptions without a warning: {losses}; they cost {duration(spent.lost_s)} of training. At this "
        f"rate --run.checkpoint_every_min {max(best_min, 0.1):.1f} loses least, saves included (Young 1974, "
        "Daly 2006)."
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
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
