"""The report's account of where each run comes from: command, code, versions, data and attempts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from msgspec.structs import fields

from vae.provenance import Attempt, Provenance
from vae.report.cells import MISSING
from vae.report.page import Block, Details, Heading, Table, Text
from vae.report.run_summary import RunSummary

# Times have a section of their own.
NAMES = [field.name for field in fields(Attempt) if field.name != "work" and field.name[-2:] != "_s"]


def provenance_section(runs: list[RunSummary]) -> list[Block]:
    """The facts and the attempts of every run that has begun to train."""
    blocks: list[Block] = [Heading("Provenance")]
    for run in runs:
        if run.provenance == Provenance():
            blocks.append(Text(f"{run.name}: nothing is recorded before training begins."))
            continue
        attempts = run.provenance.attempts
        details = Details(f"Attempts: {len(attempts)}", [_attempt_table(attempts)])
        blocks += [Heading(run.name, 3), _fact_table(run), details]
    return blocks


def _fact_table(run: RunSummary) -> Table:
    provenance = run.provenance
    versions = provenance.versions.items()
    facts = {
        "command": shlex.join(provenance.command),
        "commit": provenance.commit,
        "SHA-256 of uncommitted changes": provenance.diff_sha256 or "no such changes",
        "data fingerprint": provenance.data_fingerprint,
        "SHA-256 of the run's weights": run.scores.checkpoint_sha256 if run.scores else "",
        "versions": ", ".join(f"{name} {version}" for name, version in versions),
    }
    return Table(["fact", "value"], [[name, fact or MISSING] for name, fact in facts.items()])


def _attempt_table(attempts: Sequence[Attempt]) -> Table:
    """A row for each attempt, a column for each fact that some attempt has."""
    rows = [_attempt_facts(attempt) for attempt in attempts]
    heads = [name for name in NAMES if any(row[name] for row in rows)]
    return Table([name.replace("_", " ") for name in heads], [[row[name] for name in heads] for row in rows])


def _attempt_facts(attempt: Attempt) -> dict[str, str]:
    facts = {name: getattr(attempt, name) for name in NAMES}
    facts["restart"] = attempt.restart if attempt.job else None
    return {name: "" if fact is None else str(fact) for name, fact in facts.items()}
