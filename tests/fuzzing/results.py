"""A run's result, changed afterwards: weights, scores, figures and the features behind them."""

from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tiny import make_run, make_shards

from fuzzing.damage import damaged, flipped
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.places import Place, knock
from vae.study import Study, prepare_study

# What any change of must be noticed.
RESULTS = (".pt", ".safetensors", ".png", ".npz", "done.json", "scores.json")


def prepare(study_dir: Path, shards: Path) -> None:
    """Train a run for a few steps, and score it."""
    from vae.scoring.evaluate import evaluate
    from vae.training.trainer import train

    study = Study(study_dir.name, ("direct-s0",), extractor="smoke")
    prepare_study(study_dir, study)
    train(make_run(study_dir / "direct-s0", make_shards(shards), variant="direct", max_steps=3))
    evaluate(study_dir / "direct-s0", study)


def bench(folder: Path) -> Bench:
    """`status --verify` finds every change, and no door trips over one."""
    prepare(folder / "study", folder / "shards")
    place = Place(folder / "study")

    def of_file(name: str) -> SearchStrategy[Case]:
        content = place.files[name]
        return (flipped(content) | flipped(content) | damaged(content)).map(lambda data: Case(name, data))

    def play(case: Case) -> None:
        with place.holding(case):
            is_passed = knock("status", place.path, "--verify").returncode == 0
            if is_passed and case.content != place.files[case.name]:
                raise Finding(Fault.ACCEPTED, f"status --verify passes a changed {Path(case.name).name}")
            knock("status", place.path)

    return Bench(st.one_of(*(of_file(name) for name in place.files if name.endswith(RESULTS))), play)
