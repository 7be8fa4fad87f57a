"""Training speed, side by side in one run: the report's own loop, what else people would use, and ours.

    python benchmarks/train.py                                   # phantom images, made on the spot
    python benchmarks/train.py --source DIR/train --shards DIR   # class folders, and the same images packed

The report's loop, Lightning (in its own bf16) and pythae train the same model on images that torchvision's
ImageFolder and DataLoader read; ours reads packed shards. Each case has a process of its own, begins with the
defaults that a user meets, and takes turns with the others. The limit is how many images' arithmetic the
fastest matrix product of the same run would do in a second.
"""

import argparse
import importlib
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from accelerate.state import AcceleratorState
from PIL import Image
from reference import ReportVAE, report_loss, report_step
from side_by_side import Apart, conditions, draw, measure, parser, table
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, Resize, ToTensor

from vae.config import RunConfig
from vae.training.accelerator import start_accelerator
from vae.training.data_loader import BatchPlan, batches, load_split
from vae.training.trainer import train_step
from vae.training.training_state import build_training_state

BATCH = 32
VARIANTS = ("linear", "direct")
# Multiplications and additions of one image's training step at 256 px, in GFLOP: forward and twice that
# backward of the convolutions, and of the three 65,536 x 256 matrices of `linear`. The outermost layer's
# gradient with respect to the image is not computed.
GFLOP_PER_IMAGE = {"linear": 5.2, "direct": 4.9}
GEMM_SIZE = 2048

Run = Callable[[], int]


def device() -> torch.device:
    """Where all cases train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def image_files(source: Path) -> ImageFolder:
    """The training images as the report reads them."""
    return ImageFolder(str(source), Compose([Resize((256, 256)), Grayscale(), ToTensor()]))


def endless(loader: DataLoader[tuple[torch.Tensor, int]]) -> Iterator[torch.Tensor]:
    """Batches of images for ever."""
    while True:
        for images, _ in loader:
            yield images


def report_case(variant: str, source: Path, steps: int, workers: int) -> Run:
    """The report's loop: fp32, Adam, images decoded on the fly."""
    torch.manual_seed(0)
    model = ReportVAE(direct=variant == "direct").to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    files = DataLoader(image_files(source), BATCH, shuffle=True, drop_last=True, num_workers=workers)
    loader = endless(files)

    def run() -> int:
        running_loss = 0.0
        for _ in range(steps):
            running_loss += report_step(model, optimizer, next(loader).to(device())).item()
        return steps * BATCH

    return run


def lightning_case(variant: str, source: Path, steps: int, precision: str) -> Callable[[], tuple[int, float]]:
    """The same in PyTorch Lightning, timed from the first batch to the last of each turn."""
    lightning: Any = importlib.import_module("lightning")  # the same to mypy, installed or not
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = ReportVAE(direct=variant == "direct")

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            out, mu, logvar = self.model(batch[0])
            return report_loss(out.float(), batch[0], mu.float(), logvar.float())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Clock(lightning.Callback):  # type: ignore[misc]
        began_s = ended_s = 0.0

        def on_train_batch_start(self, *_: object) -> None:
            self.began_s = self.began_s or time.perf_counter()

        def on_train_batch_end(self, *_: object) -> None:
            self.ended_s = time.perf_counter()

    module = Module()
    files = DataLoader(image_files(source), BATCH, shuffle=True, drop_last=True)

    def run() -> tuple[int, float]:
        clock = Clock()
        trainer = lightning.Trainer(
            max_epochs=1,
            limit_train_batches=steps + 1,  # the first is read before the clock starts
            precision=precision,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, files)
        return (steps + 1) * BATCH, clock.ended_s - clock.began_s

    return run


def pythae_case(variant: str, source: Path, steps: int) -> Run:
    """The same networks in pythae: its BetaVAE, or its autoencoder, and its trainer."""
    import pythae.trainers
    from pythae.data.datasets import DatasetOutput
    from pythae.models import AE, AEConfig, BetaVAE, BetaVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    logging.getLogger("pythae").setLevel(logging.ERROR)
    networks = ReportVAE(direct=variant == "direct")

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks.encoder
            self.heads = (
                None if networks.direct else torch.nn.ModuleList([networks.fc_mu, networks.fc_logvar])
            )

        def forward(self, x: torch.Tensor) -> ModelOutput:
            features = self.layers(x).flatten(1)
            if self.heads is None:
                return ModelOutput(embedding=features)
            return ModelOutput(embedding=self.heads[0](features), log_covariance=self.heads[1](features))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            first = [] if networks.direct else [networks.expand]
            self.layers = torch.nn.Sequential(*first, networks.decoder)

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z))

    class Images(Dataset[DatasetOutput]):
        def __init__(self) -> None:
            self.files = image_files(source)

        def __len__(self) -> int:
            return steps * BATCH

        def __getitem__(self, index: int) -> DatasetOutput:
            return DatasetOutput(data=self.files[index % len(self.files)][0])

    shape = {"input_dim": (1, 256, 256), "latent_dim": 256}
    model = (
        AE(AEConfig(**shape), Encoder(), Decoder())
        if networks.direct
        else BetaVAE(BetaVAEConfig(**shape, reconstruction_loss="bce", beta=1e-4), Encoder(), Decoder())
    )
    settings = pythae.trainers.BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, learning_rate=1e-3
    )
    trainer = pythae.trainers.BaseTrainer(model, Images(), training_config=settings)
    trainer.prepare_training()

    def run() -> int:
        trainer.train_step(1)
        return steps * BATCH

    return run


def our_case(variant: str, shards: Path, steps: int, precision: str, is_compiled: bool = False) -> Run:
    """Our training step with our batches, logging left out on both sides."""
    AcceleratorState._reset_state()
    config = RunConfig(
        variant=variant,  # type: ignore[arg-type]
        data=str(shards),
        precision=precision,  # type: ignore[arg-type]
        compile=is_compiled,
        trackers=(),
    )
    accelerator = start_accelerator(config, Path(tempfile.gettempdir()))
    split = load_split(shards, "train")
    plan = BatchPlan(len(split), BATCH, 0)
    state = build_training_state(config, accelerator, total_steps=1 << 30)
    stream = enumerate(batches(split, plan, 0, 1 << 30, accelerator.device))

    def run() -> int:
        for _ in range(steps):
            step, batch = next(stream)
            train_step(state, batch, plan, step, wants_norm=False)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return steps * BATCH

    return run


def limit_case(variant: str, dtype: torch.dtype) -> Callable[[], float]:
    """Images per second whose arithmetic a large matrix product does."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device()).to(dtype) for _ in range(2))
    repeats = 2000 if torch.cuda.is_available() else 40

    def run() -> float:
        for _ in range(repeats):
            a @ b
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 2 * GEMM_SIZE**3 * repeats / (GFLOP_PER_IMAGE[variant] * 1e9)

    return run


def cases(variant: str, source: Path, shards: Path, steps: int) -> Iterator[Apart]:
    """Every case of a variant, the report's first and the limit last."""
    on_gpu = torch.cuda.is_available()
    for workers in (0, 8) if on_gpu else (0,):
        yield Apart(f"report's loop, {workers} workers", report_case, variant, source, steps, workers)
    yield Apart("Lightning, its bf16-mixed", lightning_case, variant, source, steps, "bf16-mixed")
    yield Apart("pythae's trainer", pythae_case, variant, source, steps)
    for precision in ("auto", "fp32", "bf16", *["fp16"] * on_gpu):
        yield Apart(f"ours, {precision}", our_case, variant, shards, steps, precision)
        if on_gpu:
            yield Apart(f"ours, {precision}, compiled", our_case, variant, shards, steps, precision, True)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield Apart(f"matrix product, {name}", limit_case, variant, dtype)


def unpack(shards: Path, folder: Path) -> Path:
    """Write packed training images out as JPEG class folders, for the report's loop to read."""
    split = load_split(shards, "train")
    for index, label in enumerate(split.labels):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = split.take(torch.tensor([index]))[0, 0].numpy()
        Image.fromarray(pixels).save(place / f"{index}.jpeg", quality=90)
    return folder


def pack_phantoms(folder: Path) -> Path:
    """Pack a few hundred phantom radiographs."""
    from data_prep.pack_plan import PackOptions, plan
    from data_prep.packer import finalize, pack_part

    plan("phantom:400", folder, PackOptions())
    pack_part(folder, 0, 1, 1)
    finalize(folder)
    return folder


def compare(variant: str, source: Path, shards: Path, flags: argparse.Namespace) -> None:
    """Measure one variant, print its table, draw it."""
    with ExitStack() as stack:
        apart = list(cases(variant, source, shards, flags.steps))
        found = measure([stack.enter_context(case) for case in apart], flags.rounds)
    limit = max((name for name in found if name.startswith("matrix")), key=lambda name: max(found[name]))
    print(f"\n### {variant}\n", *table(found, "images/s", "report's loop, 0 workers", limit), sep="\n")
    print("\nPeak memory, MB:", ", ".join(f"{case.case.name} {case.peak_mb:,.0f}" for case in apart))
    if flags.plot:
        name = f"{flags.plot.stem}-{variant}{flags.plot.suffix}"
        draw(flags.plot.with_name(name), found, f"Training step, {variant}", "images/s")


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--shards", type=Path, help="packed images; default: phantoms")
    flags.add_argument("--source", type=Path, help="class folders with the same training images")
    flags.add_argument(
        "--steps", type=int, default=3, help="steps of 32 images a turn (default: %(default)s)"
    )
    flags.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shards = given.shards or pack_phantoms(Path(scratch) / "shards")
        source = given.source or unpack(shards, Path(scratch) / "images")
        gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
        print(f"{gpu}{conditions('torch', 'accelerate', 'lightning', 'pythae')}, {platform.platform()}")
        for variant in given.variants:
            compare(variant, source, shards, given)


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    main()
