"""The folders of a study and of its runs: every file name in them, and where each file lies."""

import re
from pathlib import Path

import msgspec

from data_prep.errors import SettingsError
from data_prep.json_records import Record, read_record

# --- a study: runs/<study>/
STUDY_FILE = "study.yaml"
LAUNCHES_FILE = "launches.jsonl"
REPORT_FILE = "report.html"
REPORT_MARKDOWN_FILE = "report.md"
SCORES_CSV_FILE = "scores.csv"
LAUNCH_LOCK_FILE = ".launch.lock"
FEATURES_DIR = ".features"
# Beside the studies: classifiers of the label, made once for a data set.
CLASSIFIERS_DIR = ".classifiers"
CODE_DIR = "code"
# Where submitit keeps what it runs, beside SLURM's own logs; and which jobs there were.
JOBS_DIR = "jobs"
JOBS_FILE = "jobs.json"
JOBS_LOCK_FILE = ".jobs.lock"
# The faults that a drill has planned for the study, and those it has injected.
DRILL_FILE = "drill.json"

# --- a run: runs/<study>/<variant>-s<seed>/
RUN_FILE = "run.yaml"
DONE_FILE = "done.json"
# Size and SHA-256 of all that the result consists of; see vae/digests.py.
DIGESTS_FILE = "digests.json"
SCORES_FILE = "scores.json"
# The scores on random halves of the test patients.
DRAWS_FILE = "draws.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
PROVENANCE_FILE = "provenance.json"
TRAINING_LOCK_FILE = ".training"
TENSORBOARD_DIR = "tensorboard"
PROFILE_DIR = "profile"
CHECKPOINTS_DIR = "checkpoints"
FIGURES_DIR = "figures"
LOGS_DIR = "logs"
# In the folder of a checkpoint.
WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "state.pt"
META_FILE = "meta.json"

# Names become folder names, job names and sbatch values: nothing a shell or SLURM could read twice.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHECKPOINT_NAME = re.compile(r"step_(\d{8,})")
LOG_NAME = re.compile(r"(?P<kind>train|evaluate)-(?P<job>.+)-r(?P<restart>\d+)-rank(?P<rank>\d+)\.log")


def check_name(name: str, what: str = "study name") -> str:
    """Return `name` if it can name a study, or `what` it is; SettingsError if not."""
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"{what} {name!r} is not allowed",
            "use up to 64 letters, digits, dots, dashes and underscores, starting with a letter or digit",
        )
    return name


def run_name(variant: str, seed: int) -> str:
    """Folder name of a run: named by what it is, never by the clock, so a requeued job finds it."""
    return f"{variant}-s{seed}"


class Done(Record, frozen=True):
    """done.json: the last, atomic act of a training, after which the run is complete."""

    IF_DAMAGED = "remove it and launch again: training goes on from the last whole checkpoint"

    step: int
    epoch: int
    checkpoint: str
    """Folder name of the checkpoint with the final weights."""
    weights_sha256: str
    data_fingerprint: str


def read_done(run_dir: Path) -> Done | None:
    """done.json; None while the run is not complete. Raises DamagedFile if no training has written it."""
    return read_record(run_dir / DONE_FILE, Done)


class ScoreValue(Record, frozen=True, forbid_unknown_fields=False):
    """The part of a score that a table of runs needs."""

    value: float | None


class ScoresSummary(Record, frozen=True, forbid_unknown_fields=False):
    """The part of scores.json that others than the report need: what was scored, by what, the values."""

    IF_DAMAGED = "remove it, and score the run again: python jobs/evaluate.py STUDY/RUN"

    checkpoint_sha256: str
    extractor: str
    extractor_sha256: str = ""
    extent: str = "full"
    label: str = ""
    """What the scores must carry with them, as in `smoke, not comparable`."""
    scores: dict[str, ScoreValue] = msgspec.field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """The scores that could be had, by key."""
        return {name: score.value for name, score in self.scores.items() if score.value is not None}

    def is_of(self, done: Done, extractor: str, extent: str) -> bool:
        """Whether they belong to the finished weights, are by that extractor, and all that is asked for."""
        is_all = extent in ("fast", self.extent)
        return is_all and (self.checkpoint_sha256, self.extractor) == (done.weights_sha256, extractor)


def read_scores_summary(run_dir: Path) -> ScoresSummary | None:
    """The scores of a run in short, if it has any; DamagedFile if no scoring has written them."""
    return read_record(run_dir / SCORES_FILE, ScoresSummary)


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run_dir / CHECKPOINTS_DIR / f"step_{step:08d}"


def weights_name(done: Done) -> str:
    """Where the final weights of a complete run lie in its folder."""
    return f"{CHECKPOINTS_DIR}/step_{done.step:08d}/{WEIGHTS_FILE}"


def checkpoint_dirs(run_dir: Path) -> dict[int, Path]:
    """The checkpoints that are there, whole or not, by step; newest first."""
    folder = run_dir / CHECKPOINTS_DIR
    names = [CHECKPOINT_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(name[1]) for name in names if name), reverse=True)
    return {step: checkpoint_dir(run_dir, step) for step in steps}


def saved_step(run_dir: Path) -> int:
    """The newest step that a training can go on from; 0 if none is saved."""
    return next(iter(checkpoint_dirs(run_dir)), 0)


def unfinished_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints that are being written, or that a killed save has left behind."""
    return list((run_dir / CHECKPOINTS_DIR).glob(".step_*.part"))


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return bool(unfinished_checkpoints(run_dir))


def figure_path(run_dir: Path, name: str) -> Path:
    """Where the figure `name` lies."""
    return run_dir / FIGURES_DIR / f"{name}.png"


def profile_path(run_dir: Path, steps: str, rank: int) -> Path:
    """Where the trace of the profiled steps `steps`, as A:B, of one rank lies."""
    return run_dir / PROFILE_DIR / f"steps-{steps.replace(':', '-')}-rank{rank}.pt.trace.json.gz"


def log_path(run_dir: Path, kind: str, attempt: str, rank: int) -> Path:
    """Log of one rank of one attempt (as in `123_4-r0`) at training or scoring the run."""
    return run_dir / LOGS_DIR / f"{kind}-{attempt}-rank{rank}.log"


def rendezvous_path(run_dir: Path, attempt: str) -> Path:
    """Where rank 0 of an attempt publishes its address."""
    return run_dir / f".rendezvous-{attempt}.json"
