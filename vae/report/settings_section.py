"""The report's table of settings that some run has changed."""

from __future__ import annotations

from dataclasses import fields

from vae.config import RunConfig, to_dict
from vae.report.page import Block, Heading, Table, Text
from vae.report.run_summary import RunSummary

SETTINGS_TEXT = "Settings that some run has changed. The defaults are the published study's."


def settings_section(runs: list[RunSummary]) -> list[Block]:
    """A row for each changed setting, a column for each run, and the settings that all runs left alone."""
    configs = {run.name: to_dict(run.config) for run in runs if run.config}
    if not configs:
        return []
    standard = to_dict(RunConfig())
    names = [field.name for field in fields(RunConfig)]
    changed = [name for name in names if any(config[name] != standard[name] for config in configs.values())]
    rows = []
    for name in changed:
        rows.append([name, str(standard[name]), *(str(config[name]) for config in configs.values())])
    same = ", ".join(f"{name} {value}" for name, value in standard.items() if name not in changed)
    return [
        Heading("Settings"),
        Text(SETTINGS_TEXT),
        Table(["setting", "default", *configs], rows),
        Text(f"As by default: {same}."),
    ]
