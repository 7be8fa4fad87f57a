"""The files of a study and its runs: YAML, JSON and JSON lines that were damaged, edited or written by others."""

import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from fuzzing.inputs import Bench, Case, Fault, Finding, Folder, copied, damaged, is_wrong, knock, wrong_json, wrong_lines, wrong_values, RAW
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tiny import REPOSITORY

from data_prep.errors import ToolkitError
from data_prep.json_records import read_record, write_record
from slurm.drill.drill import DrillRecord
from slurm.drill.faults import FaultKind, InjectedFault, Moment, PlannedFault, RunFaults
from slurm.job_records import read_records
from vae.events import AttemptStarted, Completed, Saved, StopSignalled, add_event, read_events
from vae.metrics import read_metrics
from vae.provenance import read_provenance
from vae.run_dir import read_done
from vae.scoring.score_cards import read_scores
from vae.study import read_launches, read_run, read_study

STUDY, RUN, STOPPED = "runs/old", "runs/old/linear-s0", "runs/old/direct-s0"
# Objects under these names may hold any name.
FREE = ("versions", "scores", "runs", "sha256")
# What a user does next, study or run in hand.
DOORS: tuple[tuple[str, ...], ...] = (
    ("status", STUDY), ("status", "--runs-dir", "runs"), ("status", RUN), ("why", STUDY), ("why", STOPPED), ("report", STUDY),
    ("logs", STOPPED), ("logs", RUN, "--list"), ("cancel", STUDY), ("throttle", STUDY, "2"), ("evaluate", STOPPED),
    ("launch", "--variant", "both", "--dry-run", "--cluster", "local", "--study", "old", "--data", "shards/tiny", "--extractor", "smoke"),
    ("status", STUDY, "--watch"), ("logs", STOPPED, "--follow"),
)


def prepare(folder: Path) -> Folder:
    """A finished run and an interrupted one, with every file that a study can have."""
    copied(REPOSITORY / "tests" / "golden" / "old_study", folder)
    for path in folder.glob("runs/old/*/run.yaml"):
        path.write_text(path.read_text().replace("/data/shards", "shards"))
    for step, event in enumerate((AttemptStarted, partial(Saved, seconds=0.5), StopSignalled, AttemptStarted, Completed)):
        for run in (RUN, STOPPED):
            add_event(folder / run, event(step=step, time=1.0 + step))  # type: ignore[arg-type]
    fault = InjectedFault(FaultKind.KILLED, Moment.SAVING, 0.5, step=3, attempts=1, time=5.0)
    planned = PlannedFault(FaultKind.WARNED, Moment.TRAINING, 0.2)
    write_record(folder / STUDY / "drill.json", DrillRecord({"linear-s0": RunFaults((planned,), (fault,))}))
    return Folder(folder)


def bench(folder: Path) -> Bench:
    """A file with a part of a wrong kind is refused by its reader; no door trips over one."""
    box = prepare(folder / "study")
    readers: dict[str, Callable[[Path], Any]] = {
        "study.yaml": read_study, "launches.jsonl": read_launches, "jobs.json": read_records,
        "drill.json": lambda place: read_record(place / "drill.json", DrillRecord), "run.yaml": read_run, "done.json": read_done,
        "scores.json": read_scores, "metrics.jsonl": read_metrics, "events.jsonl": read_events, "provenance.json": read_provenance,
    }
    names = [name for name in box.files if Path(name).name in readers]

    def strategy(name: str) -> SearchStrategy[Case]:
        content = box.files[name]
        if name.endswith(".yaml"):
            odd = wrong_values(yaml.safe_load(content)).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace"))
            contents = odd | odd | damaged(content) | RAW
        else:
            contents = (wrong_lines if name.endswith("l") else wrong_json)(content)
        return contents.map(lambda data: Case(name, data))

    def play(case: Case) -> None:
        path = box.path / case.name
        with box.holding(case):
            try:
                readers[path.name](path.parent)
            except ToolkitError:
                pass
            else:
                refuse_wrong(case, box.files[case.name])
            knock(*DOORS[zlib.crc32(case.content) % len(DOORS)], cwd=box.path)

    return Bench(st.one_of(*map(strategy, names)), play)


def refuse_wrong(case: Case, template: bytes) -> None:
    """Raise a Finding if the accepted file has a part of a wrong kind."""
    try:
        if case.name.endswith(".yaml"):
            pairs = [(yaml.safe_load(case.content), yaml.safe_load(template))]
        elif case.name.endswith("l"):
            known = {kind_of(line): line for line in map(json.loads, template.splitlines())}
            lines = [json.loads(line) for line in case.content[: case.content.rfind(b"\n") + 1].splitlines()]
            pairs = [(line, known[kind_of(line)]) for line in lines if kind_of(line) in known]
        else:
            pairs = [(json.loads(case.content), json.loads(template))]
    except (ValueError, yaml.YAMLError) as error:
        raise Finding(Fault.ACCEPTED, f"{Path(case.name).name} is accepted, but is none: {error}"[:160]) from error
    if any(is_wrong(value, right, FREE) for value, right in pairs):
        raise Finding(Fault.ACCEPTED, f"a part of {Path(case.name).name} is of a wrong kind")


def kind_of(line: Any) -> str:
    """Which of several records a line is."""
    return str(line.get("kind") or line.get("event")) if isinstance(line, dict) else ""
