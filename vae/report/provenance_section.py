"""Where each run comes from: settings that are not the default, command, code, versions, data, attempts."""

import shlex

from msgspec.structs import fields

from vae.config import RunConfig, to_dict
from vae.provenance import Attempt, Provenance
from vae.report.page import MISSING, Block, Details, Heading, Table, Text
from vae.report.run_summary import RunSummary

SETTINGS_TEXT = "Settings that some run has changed. The defaults are the published study's."
# Facts of an attempt; times have a section of their own.
NAMES = [field.name for field in fields(Attempt) if field.name != "work" and field.name[-2:] != "_s"]


def settings_section(runs: list[RunSummary]) -> list[Block]:
    """A row for each changed setting, a column for each run, and the settings that all runs left alone."""
    configs = {run.name: to_dict(run.config) for run in runs if run.config}
    if not configs:
        return []
    rows, same = [], []
    for name, default in to_dict(RunConfig()).items():
        values = [config[name] for config in configs.values()]
        if all(value == default for value in values):
            same.append(f"{name} {default}")
        else:
            rows.append([name, str(default), *map(str, values)])
    return [
        Heading("Settings"),
        Text(SETTINGS_TEXT),
        Table(["setting", "default", *configs], rows),
        Text(f"As by default: {', '.join(same)}."),
    ]


def provenance_section(runs: list[RunSummary]) -> list[Block]:
    """The facts and the attempts of every run that has begun to train."""
    blocks: list[Block] = [Heading("Provenance")]
    for run in runs:
        if run.provenance == Provenance():
            blocks.append(Text(f"{run.name}: nothing is recorded before training begins."))
            continue
        attempts = [_attempt_facts(attempt) for attempt in run.provenance.attempts]
        names = [name for name in NAMES if any(facts[name] for facts in attempts)]
        rows = [[facts[name] for name in names] for facts in attempts]
        table = Table([name.replace("_", " ") for name in names], rows)
        blocks += [Heading(run.name, 3), _fact_table(run), Details(f"Attempts: {len(rows)}", [table])]
    return blocks


def _fact_table(run: RunSummary) -> Table:
    provenance = run.provenance
    facts = {
        "command": shlex.join(provenance.command),
        "commit": provenance.commit,
        "SHA-256 of uncommitted changes": provenance.diff_sha256 or "no such changes",
        "data fingerprint": provenance.data_fingerprint,
        "SHA-256 of the run's weights": run.scores.checkpoint_sha256 if run.scores else "",
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
    }
    return Table(["fact", "value"], [[name, fact or MISSING] for name, fact in facts.items()])


def _attempt_facts(attempt: Attempt) -> dict[str, str]:
    facts = {name: getattr(attempt, name) for name in NAMES}
    facts["restart"] = attempt.restart if attempt.job else None
    return {name: "" if fact is None else str(fact) for name, fact in facts.items()}
