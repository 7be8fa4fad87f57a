"""Checkpoints: bytes that differ from their digests, and files with right digests that are not ours."""

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from fuzzing.inputs import Bench, Case, Fault, Finding, damaged, flipped, inside, wrong_json
from fuzzing.packed import differs
from fuzzing.study import RUN, STOPPED, prepare
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from data_prep.files import sha256_file, write_json
from vae.run_dir import DONE_FILE
from vae.training.checkpoint import META, STATE, WEIGHTS, find_latest, load_trained
from vae.training.trainer import train

FORGED = "forged/"  # the digests are made to fit it
SAVED, TRAINED = f"{STOPPED}/checkpoints/step_00000104", f"{RUN}/checkpoints/step_00000500"
ODD: tuple[Any, ...] = (None, "x", -5, 10**6, 1 << 70, 0.5, float("nan"), [], {}, [1], {"a": 1}, torch.zeros(3), torch.zeros(0), torch.zeros(4, dtype=torch.uint8), True)


def odd_state(content: bytes, keys: tuple[str, ...], value: Any) -> bytes:
    """state.pt with another value, or none, at one place."""
    state = torch.load(BytesIO(content), weights_only=True)
    place = state
    for key in keys[:-1]:
        place = place[key]
    if value == "drop":
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return saved(state)


def saved(state: Any) -> bytes:
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def odd_weights(content: bytes, change: tuple[str, Any], length: int | None) -> bytes:
    """model.safetensors whose header claims something else."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    tensor = next(name for name in header if name != "__metadata__")
    key, value = change
    header[tensor] = {**header[tensor], key: value} if key else value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content[8 + size :]


def bench(folder: Path) -> Bench:
    """What differs from its digest is never loaded; what has a right one is loaded, or refused in one line."""
    torch.set_num_threads(1)
    box = prepare(folder / "study")
    state, weights = box.files[f"{SAVED}/{STATE}"], box.files[f"{SAVED}/{WEIGHTS}"]
    values = torch.load(BytesIO(state), weights_only=True)
    keys = [(key,) for key in values] + [("optimizer", key) for key in values["optimizer"]]
    odd_states = st.builds(odd_state, st.just(state), st.sampled_from(keys), st.sampled_from((*ODD, "drop")))
    whole = st.sampled_from(ODD).map(saved)
    changes = st.sampled_from((("dtype", "F64"), ("dtype", "x"), ("shape", [1 << 40]), ("shape", []), ("shape", [-1]), ("data_offsets", [0, 1 << 50]), ("data_offsets", [5, 1]), ("", {}), ("more", 1)))
    odd_tensors = st.builds(odd_weights, st.just(weights), changes, st.sampled_from((None, None, 0, 1, 1 << 40, (1 << 64) - 1)))

    def at(name: str, contents: SearchStrategy[bytes]) -> SearchStrategy[Case]:
        return contents.map(lambda data: Case(name, data))

    cases = [at(name, flipped(box.files[name]) | damaged(box.files[name])) for name in box.files if Path(name).name in (STATE, WEIGHTS)]
    cases += [at(f"{SAVED}/{META}", wrong_json(box.files[f"{SAVED}/{META}"]))]
    cases += [at(f"{FORGED}{SAVED}/{STATE}", odd_states | odd_states | whole | damaged(state))]
    cases += [at(f"{FORGED}{place}/{WEIGHTS}", odd_tensors | damaged(box.files[f"{place}/{WEIGHTS}"])) for place in (SAVED, TRAINED)]

    def play(case: Case) -> None:
        name = case.name.removeprefix(FORGED)
        is_forged, checkpoint = name != case.name, (box.path / name).parent
        run_dir = checkpoint.parent.parent
        with box.holding(Case(name, case.content)):
            if is_forged:
                sign(checkpoint, run_dir)
                load(run_dir)
            elif find_latest(run_dir) and differs(case, box.files[name]):
                raise Finding(Fault.ACCEPTED, f"a changed {Path(name).name} is resumed from")

    def load(run_dir: Path) -> None:
        with inside(box.path):
            if run_dir.name == "linear-s0":
                load_trained(run_dir)
            else:
                train(run_dir, lambda: True)

    return Bench(st.one_of(*cases), play)


def sign(checkpoint: Path, run_dir: Path) -> None:
    """Make every digest fit the files as they are."""
    meta = json.loads((checkpoint / META).read_bytes())
    digests = {name: sha256_file(checkpoint / name) for name in meta["sha256"]}
    write_json(checkpoint / META, {**meta, "sha256": digests})
    if (run_dir / DONE_FILE).exists():
        done = json.loads((run_dir / DONE_FILE).read_bytes())
        write_json(run_dir / DONE_FILE, {**done, "weights_sha256": digests[WEIGHTS]})
