"""The architecture, read from the imports and the literals.

Each folder is a room, and a room looks only into rooms below it. `slurm/node/` stands between the files of
`slurm/` itself: it needs the client, and whatever names a job's work needs it. So those are on three floors:

    jobs                      the front doors
    slurm: the launch         what a launch decides, checks and starts
    slurm/doctor  slurm/drill
    slurm/diagnose
    slurm: the jobs           which are missing, their text, what became of them
    slurm/node                what runs inside a job
    slurm: the site           the only door to SLURM, and what a site wants
    vae/report
    vae/scoring
    vae/training
    vae                       a study, a run's folder and what stands in its files
    data_prep
"""

import ast
import re
from pathlib import Path

import pytest
from tiny import REPOSITORY

from vae import run_dir

PACKAGES = ("data_prep", "vae", "slurm", "jobs")
BASE = {"data_prep", "vae"}
SITE = {*BASE, "slurm: the site"}
JOBS = {*SITE, "slurm/node", "slurm: the jobs"}
# From the ground up: the rooms that each room may look into, beside itself.
ARROWS = {
    "data_prep": set(),
    "vae": {"data_prep"},
    "vae/training": BASE,
    "vae/scoring": {*BASE, "vae/training"},
    "vae/report": {*BASE, "vae/scoring"},
    "slurm: the site": BASE,
    "slurm/node": {*SITE, "vae/training", "vae/scoring", "vae/report"},
    "slurm: the jobs": {*SITE, "slurm/node", "vae/scoring", "vae/report"},
    "slurm/diagnose": JOBS,
    "slurm/doctor": {*JOBS, "slurm/diagnose"},
    "slurm/drill": {*JOBS, "slurm/diagnose", "vae/training"},
    "slurm: the launch": {*JOBS, "slurm/diagnose", "vae/scoring"},
    "jobs": {
        *JOBS,
        *("slurm: the launch", "slurm/diagnose", "slurm/doctor", "slurm/drill"),
        *("vae/training", "vae/scoring", "vae/report"),
    },
}
# Files of slurm/ itself; those on neither of these floors are about jobs.
FLOORS = {
    "slurm: the site": ("client", "code_snapshot", "private_folder", "profile"),
    "slurm: the launch": ("backends", "launch", "launch_data", "preflight"),
}
SCHEDULER = {"submitit"}


def production() -> dict[str, Path]:
    """Every production file by the name that imports it."""
    paths = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    return {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in paths}


FILES = production()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Names of all modules a file imports, at any depth of it; of `from x import y` both x and x.y."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(name: str) -> str:
    """The room of a production file."""
    folder, _, file = name.rpartition(".")
    floor = [room for room, files in FLOORS.items() if file in files]
    return (floor or ["slurm: the jobs"])[0] if folder == "slurm" else folder.replace(".", "/")


# --- the rooms -----------------------------------------------------------------------------------


def test_no_room_looks_up() -> None:
    """So there is no circle of rooms."""
    rooms = list(ARROWS)
    for number, (room, below) in enumerate(ARROWS.items()):
        assert below <= set(rooms[:number]), room
    assert {room_of(name) for name in FILES} <= set(rooms)


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_run_one_way(room: str) -> None:
    for name in (name for name in FILES if room_of(name) == room):
        looks_into = {room_of(other) for other in imports(FILES[name]) & FILES.keys()}
        assert looks_into <= ARROWS[room] | {room}, name


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Taking away, again and again, what needs nothing that is left, leaves nothing."""
    needs = {name: (imports(path) & FILES.keys()) - {name} for name, path in FILES.items()}
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert sorted(needs) == []


@pytest.mark.parametrize("package", ["data_prep", "vae"])
def test_the_lower_rooms_know_no_scheduler(package: str) -> None:
    for name in (name for name in FILES if name.startswith(f"{package}.")):
        assert not {other.partition(".")[0] for other in imports(FILES[name])} & SCHEDULER, name
        assert "SLURM_" not in FILES[name].read_text(encoding="utf-8"), name


def test_vae_uses_only_the_shard_format_of_data_prep() -> None:
    names = [imports(FILES[name]) for name in FILES if name.startswith("vae.")]
    used = set().union(*names) & {name for name in FILES if name.startswith("data_prep.")}
    tools = {"errors", "files", "json_records", "plain_text", "progress"}
    assert used == {f"data_prep.{name}" for name in {"manifest", "shard_reader", *tools}}


# --- the names in a run folder -------------------------------------------------------------------

RUN_NAMES = {value for name, value in vars(run_dir).items() if name.endswith(("_FILE", "_DIR"))}
# ... and the beginnings of names that hold a number or an attempt.
PARTS = re.compile(r"^\.?step_|^\.rendezvous|[^-]-rank$")
# The same words where they mean something else.
OTHERS = {
    ("slurm.code_snapshot", "jobs"),  # the front doors
    ("vae.config", "tensorboard"),  # a tracker
    ("vae.scoring.inception_weights", "checkpoints"),  # torch hub's
}


def names_in(name: str) -> set[str]:
    """The names of a run folder that a file's code holds as text: names, paths, patterns, no sentences."""
    values = {node.value for node in ast.walk(parse(FILES[name])) if isinstance(node, ast.Constant)}
    texts = {value for value in values if isinstance(value, str) and not re.search(r"\s|\.py$", value)}
    return {text for text in texts if PARTS.search(text) or RUN_NAMES & set(text.split("/"))}


def test_what_a_run_folder_holds_is_named_in_one_place() -> None:
    names = {(name, text) for name in FILES if name != "vae.run_dir" for text in names_in(name)}
    assert names - OTHERS == set()
    assert names >= OTHERS
