"""Checkpoints: bytes that differ from their digests, and files with right digests that are not ours."""

import json
import struct
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from data_prep.files import sha256_file, write_json
from fuzzing.damage import damaged, wrong_json
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.packed import FORGED, differs
from fuzzing.places import Place, inside
from fuzzing.study import STOPPED, TRAINED, prepare
from vae.run_dir import DONE_FILE
from vae.training.checkpoint import find_latest, load_trained
from vae.training.trainer import train

WEIGHTS, STATE, META = "model.safetensors", "state.pt", "meta.json"
SAVED, FINAL = f"{STOPPED}/checkpoints/step_00000104", f"{TRAINED}/checkpoints/step_00000500"
ODD: list[Any] = [None, "x", -5, 10**6, 1 << 70, 0.5, float("nan"), [], {}, [1], {"a": 1}, True]
ODD += [torch.zeros(3), torch.zeros(0), torch.zeros(4, dtype=torch.uint8), "drop"]
CLAIMS = [("dtype", "F64"), ("dtype", "x"), ("shape", [1 << 40]), ("shape", []), ("shape", [-1]), ("more", 1)]
CLAIMS += [("data_offsets", [0, 1 << 50]), ("data_offsets", [5, 1])]


def saved(state: Any) -> bytes:
    """What torch saves."""
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def odd_state(content: bytes, keys: tuple[str, ...], value: Any) -> bytes:
    """state.pt with another value, or none, at one place."""
    state = torch.load(BytesIO(content), weights_only=True)
    *above, last = keys
    part = state[above[0]] if above else state
    part[last] = value
    if isinstance(value, str) and value == "drop":
        del part[last]
    return saved(state)


def odd_weights(content: bytes, claim: tuple[str, Any], size: int | None) -> bytes:
    """model.safetensors whose header claims something else of one tensor, or of its own size."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    name = next(name for name in header if name != "__metadata__")
    header[name] |= dict([claim])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + content[end:]


def sign(checkpoint: Path, run_dir: Path) -> None:
    """Make every digest fit the files as they are."""
    meta = json.loads((checkpoint / META).read_bytes())
    digests = {name: sha256_file(checkpoint / name) for name in (WEIGHTS, STATE)}
    write_json(checkpoint / META, {**meta, "sha256": digests})
    if (run_dir / DONE_FILE).exists():
        done = json.loads((run_dir / DONE_FILE).read_bytes())
        write_json(run_dir / DONE_FILE, {**done, "weights_sha256": digests[WEIGHTS]})


def load(run_dir: Path) -> None:
    """Use the newest checkpoint of a run: to score it, or for one more step."""
    if (run_dir / DONE_FILE).exists():
        load_trained(run_dir)
    else:
        train(run_dir, lambda: True)


def bench(folder: Path) -> Bench:
    """What differs from its digest is never used; what has a right one is used, or refused in one line."""
    torch.set_num_threads(1)
    prepare(folder / "study")
    place = Place(folder / "study")
    files = place.files
    state, meta = files[f"{SAVED}/{STATE}"], f"{SAVED}/{META}"
    values = torch.load(BytesIO(state), weights_only=True)
    keys = [(key,) for key in values] + [("optimizer", key) for key in values["optimizer"]]
    states = st.builds(odd_state, st.just(state), st.sampled_from(keys), st.sampled_from(ODD))

    def at(name: str, contents: SearchStrategy[bytes]) -> SearchStrategy[Case]:
        return contents.map(lambda data: Case(name, data))

    def weights(name: str) -> SearchStrategy[bytes]:
        sizes = st.sampled_from((None, None, 0, 1, 1 << 40, (1 << 64) - 1))
        return st.builds(odd_weights, st.just(files[name]), st.sampled_from(CLAIMS), sizes) | damaged(
            files[name]
        )

    def play(case: Case) -> None:
        name = case.name.removeprefix(FORGED)
        checkpoint = (place.path / name).parent
        run_dir = checkpoint.parent.parent
        with place.holding(Case(name, case.content)), inside(place.path):
            if name != case.name:
                sign(checkpoint, run_dir)
                load(run_dir)
            elif find_latest(run_dir) and differs(case, files[name]):
                raise Finding(Fault.ACCEPTED, f"a changed {Path(name).name} is resumed from")

    with place.holding(), inside(place.path):  # the first time takes seconds
        for run in (STOPPED, TRAINED):
            load(place.path / run)
    names = [*map("/".join, product((SAVED, FINAL), (WEIGHTS, STATE)))]
    cases = [at(name, damaged(files[name])) for name in names] + [at(meta, wrong_json(files[meta]))]
    cases += [at(FORGED + name, weights(name)) for name in names if name.endswith(WEIGHTS)]
    cases += [
        at(f"{FORGED}{SAVED}/{STATE}", states | states | st.sampled_from(ODD).map(saved) | damaged(state))
    ]
    return Bench(st.one_of(*cases), play)
