"""Where the allocated time went, by run and by attempt, and what to ask for in the next launch."""

from collections.abc import Collection, Sequence

from vae.goodput import Account, AttemptSpent, Spent, account, duration, suggestions, total
from vae.report.page import MISSING, Block, Details, Heading, Table, Text, fixed
from vae.report.run_summary import RunSummary

TIMES_TEXT = (
    "Useful is the share of the allocated time that went into training steps whose results survived (also "
    "called goodput or effective training time). The rest is start-up, steps that an interruption made the "
    "run do again, standing still to save, and validation. Time in the queue is not allocated time. What an "
    "interrupted attempt did after its last line of metrics.jsonl is not counted, and neither is scoring."
)
# Columns of time, in seconds, and of hours; those that no row knows anything of are left out.
TIMES = {
    "in the queue": "wait_s",
    "start-up": "startup_s",
    "useful steps": "useful_s",
    "steps done again": "lost_s",
    "saving": "save_s",
    "validation": "val_s",
}
HOURS = {"GPU-hours": "gpu_hours", "CPU-hours": "cpu_hours"}
PEAKS = {"cores": "CPU cores busy", "host_gb": "memory (GiB)", "gpu_gb": "GPU memory (GiB)"}


def times_section(runs: list[RunSummary]) -> list[Block]:
    """What became of the allocated time, and what to ask for next time."""
    accounts = [_account(run) for run in runs]
    timed = [account for account in accounts if account.attempts]
    blocks: list[Block] = [Heading("Where the time went")]
    if not timed:
        return [*blocks, Text("No attempt has left times yet.")]
    spent_by_run = {account.run: account.spent for account in timed}
    if len(timed) > 1:
        spent_by_run["all runs"] = total(spent_by_run.values())
    blocks += [Text(TIMES_TEXT), _time_table("run", spent_by_run.items())]
    blocks += [_attempts_block(account) for account in timed if len(account.attempts) > 1]
    if sentences := suggestions(accounts):
        blocks += [Heading("For the next launch", 3), *(Text(sentence) for sentence in sentences)]
    return blocks


def _account(run: RunSummary) -> Account:
    scoring_gb = run.scores.host_gb if run.scores else None
    attempts, is_done = run.provenance.attempts, run.done is not None
    return account(run.name, attempts, run.metrics, is_done, scoring_gb, run.events)


def _attempts_block(account: Account) -> Details:
    """Times and peaks of each attempt of a run."""
    rows = [(_attempt_name(attempt), attempt.spent) for attempt in account.attempts]
    tables = [_time_table("attempt", rows), _peak_table(account.attempts)]
    return Details(f"{account.run}: {len(rows)} attempts", tables)


def _attempt_name(attempt: AttemptSpent) -> str:
    lost = f", {attempt.steps_lost:,} of them again later" if attempt.steps_lost else ""
    return f"from step {attempt.record.from_step or 0:,}, {attempt.steps:,} steps{lost}"


def _time_table(what: str, spent_by_name: Collection[tuple[str, Spent]]) -> Table:
    """A row of times for each name."""
    parts = [spent for _, spent in spent_by_name]
    times = [head for head, name in TIMES.items() if any(getattr(part, name) is not None for part in parts)]
    hours = [head for head, name in HOURS.items() if any(getattr(part, name) for part in parts)]
    rows = []
    for name, spent in spent_by_name:
        durations = [duration(getattr(spent, TIMES[head])) or MISSING for head in times]
        useful = MISSING if spent.goodput is None else f"{spent.goodput:.0%}"
        rows.append([name, *durations, useful, *(fixed(getattr(spent, HOURS[head]), 2) for head in hours)])
    head = [what, *times, "useful", *hours]
    return Table(head, rows, frozenset(range(1, len(head))))


def _peak_table(attempts: Sequence[AttemptSpent]) -> Table:
    """What the first process of each attempt used."""
    names = [name for name in PEAKS if any(getattr(attempt.work, name) is not None for attempt in attempts)]
    rows = []
    for attempt in attempts:
        device, world_size = attempt.processes
        peaks = [fixed(getattr(attempt.work, name), 1) for name in names]
        rows.append([_attempt_name(attempt), f"{world_size} x {device}", *peaks])
    head = ["attempt", "processes", *(PEAKS[name] for name in names)]
    return Table(head, rows, frozenset(range(2, len(head))))
