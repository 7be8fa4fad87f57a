"""What a drill is asked to do: how many faults on which images, and the launch flags of its tiny runs."""

from dataclasses import dataclass
from pathlib import Path

from data_prep import pack_plan, packer
from data_prep.errors import SettingsError
from data_prep.manifest import MANIFEST_FILE
from slurm.node.environment import Backend
from slurm.plan import Resources
from vae.config import VARIANT_GROUPS
from vae.run_dir import run_name

# Quick on anything: what is tested is the cluster.
IMAGE_PX = 32
TINY_RUNS = (
    *("--extractor=smoke", "--run.widths=[4,8,8,16]", "--run.latent_dim=8", "--run.trackers=[]"),
    *("--run.epochs=1000000", "--run.log_every_steps=5", "--run.precision=fp64"),
    "--run.checkpoint_every_min=0.05",
)
# Many more than a run makes between two looks, which is about 300 a second on a fast machine.
STEPS_PER_FAULT = {Backend.SLURM: 2000, Backend.LOCAL: 500}


@dataclass(frozen=True)
class DrillOptions:
    """What a drill is asked to do: `count` faults in all; `seed` decides what happens when."""

    variant: str
    resources: Resources
    data: Path
    count: int
    seed: int
    backend: Backend
    profile: str
    runs_dir: Path

    @property
    def study_dir(self) -> Path:
        """The study that gets faults."""
        return self.runs_dir.resolve() / f"drill-{self.seed}"

    @property
    def unbroken_dir(self) -> Path:
        """Its twin, which is left alone."""
        return self.runs_dir.resolve() / f"drill-{self.seed}-unbroken"

    @property
    def runs(self) -> list[str]:
        """The runs of each of the two."""
        return [run_name(variant, 0) for variant in VARIANT_GROUPS[self.variant]]

    @property
    def faults_per_run(self) -> int:
        """As many as the run with the most gets."""
        return -(-self.count // len(self.runs))

    def launch_flags(self) -> list[str]:
        """The flags of both launches, which differ in --study alone."""
        gpus, nodes = self.resources.gpus, self.resources.nodes
        steps = STEPS_PER_FAULT[self.backend] * (1 + self.faults_per_run)
        flags = [f"--variant={self.variant}", f"--gpus={gpus}", f"--nodes={nodes}", f"--data={self.data}"]
        flags += [f"--cluster={self.backend}", f"--runs-dir={self.runs_dir}", f"--profile={self.profile}"]
        return [*flags, *TINY_RUNS, f"--run.max_steps={steps}", f"--run.batch_size={max(8, gpus)}"]

    def expectation(self) -> str:
        """How long this is going to take."""
        if self.backend is Backend.LOCAL:
            return f"{self.count} interruptions on this machine: about {1 + self.count // 3} minutes"
        each, held = self.faults_per_run, "many clusters hold a requeued job for two minutes"
        minutes = f"{2 + each} to {3 + 3 * each} minutes where jobs start at once ({held})"
        return f"{self.count} interruptions, {each} of each run: {minutes}, longer where there is a queue"


def prepare_data(source: str, out: Path) -> Path:
    """Packed images: the user's, or made-up ones that are packed into `out` here, which takes seconds."""
    if not source.startswith("phantom:"):
        if not (Path(source) / MANIFEST_FILE).exists():
            raise SettingsError(f"--data {source}: no packed images there", "give packed ones, or phantom:96")
        return Path(source)
    if not (out / MANIFEST_FILE).exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        pack_plan.plan(source, out, pack_plan.PackOptions(size_px=IMAGE_PX))
        packer.pack_part(out, 0, 1, workers=1)
        packer.finalize(out)
    return out
