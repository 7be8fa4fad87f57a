"""The report's account of where each run comes from: command, code, versions, data and attempts."""

from __future__ import annotations

import shlex
from typing import Any

from vae.report.cells import MISSING
from vae.report.page import Block, Details, Heading, Table, Text
from vae.report.run_summary import RunSummary


def provenance_section(runs: list[RunSummary]) -> list[Block]:
    """The facts and the attempts of every run that has begun to train."""
    blocks: list[Block] = [Heading("Provenance")]
    for run in runs:
        if run.provenance:
            blocks += [Heading(run.name, 3), _fact_table(run), _attempt_details(run.provenance["attempts"])]
        else:
            blocks.append(Text(f"{run.name}: nothing is recorded before training begins."))
    return blocks


def _fact_table(run: RunSummary) -> Table:
    provenance = run.provenance
    versions = provenance.get("versions", {})
    facts = {
        "command": shlex.join(provenance.get("command", [])) or MISSING,
        "commit": provenance.get("commit", MISSING),
        "SHA-256 of uncommitted changes": provenance.get("diff_sha256", "no such changes"),
        "data fingerprint": provenance.get("data_fingerprint", MISSING),
        "SHA-256 of the run's weights": run.scores.checkpoint_sha256 if run.scores else MISSING,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return Table(["fact", "value"], [[name, str(fact)] for name, fact in facts.items()])


def _attempt_details(attempts: list[dict[str, Any]]) -> Details:
    """What is recorded of each attempt, but for the times, which have a section of their own."""
    names: dict[str, None] = {}
    for attempt in attempts:
        names |= {name: None for name in attempt if name != "work" and not name.endswith("_s")}
    rows = [[str(attempt.get(name, "")) for name in names] for attempt in attempts]
    table = Table([name.replace("_", " ") for name in names], rows)
    return Details(f"Attempts: {len(attempts)}", [table])
