"""The files of a study and its runs: YAML, JSON and JSON lines that were damaged, edited or are others."""

import json
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tiny import REPOSITORY

from data_prep.errors import ToolkitError
from data_prep.json_records import read_record, write_record
from fuzzing.damage import STRANGERS, damaged, is_wrong, wrong_json, wrong_lines, wrong_values
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.places import Place, knock
from slurm.drill.drill import DrillRecord
from slurm.drill.faults import FaultKind, InjectedFault, Moment, PlannedFault, RunFaults
from slurm.job_records import read_records
from vae.config import YamlLoader
from vae.events import AnyEvent, AttemptStarted, Completed, Saved, StopSignalled, add_event, read_events
from vae.metrics import read_metrics
from vae.provenance import read_provenance
from vae.run_dir import read_done
from vae.scoring.score_cards import read_scores
from vae.study import read_launches, read_run, read_study

STUDY, TRAINED, STOPPED = "runs/old", "runs/old/linear-s0", "runs/old/direct-s0"
LOGS = (".log", ".out")
# Objects under these names may hold any name.
FREE = ("versions", "scores", "runs", "sha256")
EVENTS: tuple[Callable[..., AnyEvent], ...] = (
    AttemptStarted,
    partial(Saved, seconds=0.5),
    StopSignalled,
    Completed,
)
LAUNCH = "launch --variant both --dry-run --cluster local --study old --data shards/tiny --extractor smoke"
# What a user does next, one of them for each input.
COMMANDS = [
    f"status {STUDY}",
    "status --runs-dir runs",
    f"status {TRAINED}",
    f"why {STUDY}",
    f"why {STOPPED}",
    LAUNCH,
]
COMMANDS += [
    f"report {STUDY}",
    f"logs {STOPPED}",
    f"logs {TRAINED} --list",
    f"cancel {STUDY}",
    f"throttle {STUDY} 2",
]
COMMANDS += [f"evaluate {STOPPED}", f"status {STUDY} --watch", f"logs {STOPPED} --follow"]
READERS: dict[str, Callable[[Path], Any]] = {
    "study.yaml": read_study,
    "launches.jsonl": read_launches,
    "jobs.json": read_records,
    "drill.json": lambda folder: read_record(folder / "drill.json", DrillRecord),
    "run.yaml": read_run,
    "done.json": read_done,
    "scores.json": read_scores,
    "metrics.jsonl": read_metrics,
    "events.jsonl": read_events,
    "provenance.json": read_provenance,
}


def prepare(folder: Path) -> None:
    """A study with a finished run and an interrupted one, and with every file that there can be."""
    shutil.copytree(REPOSITORY / "tests" / "golden" / "old_study", folder, dirs_exist_ok=True)
    for path in folder.glob("runs/old/*/run.yaml"):
        path.write_text(path.read_text().replace("/data/shards", "shards"))
        for step, event in enumerate(EVENTS):
            add_event(path.parent, event(step=step, time=1.0 + step))
    injected = InjectedFault(FaultKind.KILLED, Moment.SAVING, 0.5, step=3, attempts=1, time=5.0)
    faults = RunFaults((PlannedFault(FaultKind.WARNED, Moment.TRAINING, 0.2),), (injected,))
    write_record(folder / STUDY / "drill.json", DrillRecord({"linear-s0": faults}))


def wrong_yaml(content: bytes) -> SearchStrategy[bytes]:
    """A YAML file with an odd part, with damaged bytes, or another file altogether."""
    odd = wrong_values(yaml.safe_load(content)).map(lambda value: yaml.safe_dump(value).encode())
    return odd | odd | damaged(content) | st.sampled_from(STRANGERS)


def values_of(name: str, content: bytes) -> list[Any]:
    """What stands in a file, one by one if it is one of lines."""
    if name.endswith(".yaml"):
        return [yaml.load(content, YamlLoader)]
    if name.endswith(".json"):
        return [json.loads(content)]
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def kind_of(line: Any) -> str:
    """Which of several records a line is."""
    return str(line.get("kind", line.get("event"))) if isinstance(line, dict) else ""


def refuse_wrong(case: Case, template: bytes) -> None:
    """Raise a Finding if a file that was accepted has a part of a wrong kind."""
    known = {kind_of(value): value for value in values_of(case.name, template)}
    values = values_of(case.name, case.content)
    if any(is_wrong(value, known[kind_of(value)], FREE) for value in values if kind_of(value) in known):
        raise Finding(Fault.ACCEPTED, f"a part of {Path(case.name).name} is of a wrong kind")


def bench(folder: Path) -> Bench:
    """A file with a part of a wrong kind is refused by its reader; no door trips over one."""
    prepare(folder / "study")
    place = Place(folder / "study")

    def of_file(name: str) -> SearchStrategy[Case]:
        damages = {".yaml": wrong_yaml, ".json": wrong_json, ".jsonl": wrong_lines}
        damage = damages.get(Path(name).suffix, damaged)  # a log may hold anything
        return damage(place.files[name]).map(lambda data: Case(name, data))

    def play(case: Case) -> None:
        path = place.path / case.name
        with place.holding(case):
            with suppress(ToolkitError):
                if path.name in READERS:
                    READERS[path.name](path.parent)
                    refuse_wrong(case, place.files[case.name])
            knock(*COMMANDS[zlib.crc32(case.content) % len(COMMANDS)].split(), cwd=place.path)

    with place.holding():  # the first time takes seconds
        for command in COMMANDS:
            knock(*command.split(), cwd=place.path)
    names = [name for name in place.files if name.endswith((*READERS, *LOGS))]
    return Bench(st.one_of(*map(of_file, names)), play)
