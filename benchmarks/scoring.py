"""Scoring, side by side in one run: what others do for the same scores, and ours.

Two questions. How long do all scores of a run take (`evaluate`: 13 scores of reconstructions, samples and
training images against the test images) beside what a user of pytorch-ignite writes for them? And FID and
Inception score of two folders of images beside torch-fidelity, pytorch-fid, torchmetrics and ignite?

Every case is a process of its own, from before its first import to its last number. The images are phantoms,
the weights seeded: the same convolutions for every tool, but for the padding that the tools themselves patch.

    python benchmarks/scoring.py --plot benchmarks/plots/scoring.svg    # the study's 624 images; half an hour
    python benchmarks/scoring.py --images 96 --rounds 3 --cases ours
    python benchmarks/scoring.py --through 'taskset -c 0-3'            # what to start every case with
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of every case

import argparse
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch

BATCH = 32
STUDY, OTHER_STUDY = "study", "other"
RUN = "linear-s0"
# Where torch.hub, and so ignite, torchmetrics and pytorch-fid, look for weights.
HUB = "hub/checkpoints"
TORCHVISION_FILE = "inception_v3_google-0cc3c7bd.pth"
FIDELITY_FILE = "weights-inception-2015-12-05-6726825d.pth"
PYTORCH_FID_FILE = "pt_inception-2015-12-05-6726825d.pth"


# --- what every case starts from ----------------------------------------------------------------------------


def prepare(work: Path, count: int) -> None:
    """Phantoms as PNG files and packed, seeded weights, and a run trained for one step."""
    from PIL import Image

    from data_prep import phantom
    from data_prep.pack_plan import PackOptions, plan
    from data_prep.packer import finalize, pack_part
    from vae.config import RunConfig
    from vae.study import prepare_run
    from vae.training.trainer import train

    for split, films, first in (("test", count, 1), ("train", 2 * count, 1_000_000)):  # val is cut from train
        for number in range(films):
            label = ("NORMAL", "PNEUMONIA")[number % 2]
            path = work / "images" / split / label / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(phantom.render(first + 10 * number, number % 2 == 1, 256))
            image.save(path)
            if number < count:
                flat = work / "flat" / split / path.name
                flat.parent.mkdir(parents=True, exist_ok=True)
                image.convert("RGB").save(flat)
    plan(str(work / "images"), work / "shards", PackOptions())
    pack_part(work / "shards", 0, 1, 1)
    finalize(work / "shards")
    write_weights(work)
    config = RunConfig(variant="linear", data=str(work / "shards"), max_steps=1, batch_size=8, trackers=())
    prepare_run(work / "runs" / STUDY / RUN, config)
    train(work / "runs" / STUDY / RUN)


def write_weights(work: Path) -> None:
    """Seeded Inception weights for torchvision's network, and the same for that of FID (1,008 classes)."""
    from torch import nn
    from torchvision.models import inception_v3

    from data_prep.files import sha256_file

    torch.manual_seed(0)
    network = inception_v3(weights=None, transform_input=True, init_weights=False)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    nn.init.normal_(network.fc.weight, std=0.3)
    state = network.state_dict()
    folder = work / HUB
    folder.mkdir(parents=True)
    path = folder / TORCHVISION_FILE
    torch.save(state, path)
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256_file(path)}  {path.name}\n")
    of_fid = {name: value for name, value in state.items() if not name.startswith("AuxLogits")}
    of_fid["fc.weight"] = torch.cat((state["fc.weight"], state["fc.weight"][:8]))
    of_fid["fc.bias"] = torch.cat((state["fc.bias"], state["fc.bias"][:8]))
    for name in (FIDELITY_FILE, PYTORCH_FID_FILE):
        torch.save(of_fid, folder / name)


# --- all scores of a run ------------------------------------------------------------------------------------


def ours(work: Path, study: str) -> dict[str, float]:
    """`evaluate` of one run, as the job does it."""
    from vae.scoring.evaluate import evaluate
    from vae.study import Study

    weights = str(work / HUB / TORCHVISION_FILE)
    asked = Study(study, (RUN,), inception_weights=weights, scores="fast")
    result = evaluate(work / "runs" / study / RUN, asked)
    return {key: score.value for key, score in result.scores.items() if score.value is not None}


def first_run(work: Path) -> dict[str, float]:
    """Nothing is cached."""
    for name in (STUDY, OTHER_STUDY):
        shutil.rmtree(work / "runs" / name / ".features", ignore_errors=True)
    return ours(work, STUDY)


def second_run(work: Path) -> dict[str, float]:
    """The study has the features of the real images."""
    return ours(work, STUDY)


def other_study(work: Path) -> dict[str, float]:
    """The study beside has them."""
    shutil.rmtree(work / "runs" / OTHER_STUDY, ignore_errors=True)
    skipped = shutil.ignore_patterns(".features")
    shutil.copytree(work / "runs" / STUDY, work / "runs" / OTHER_STUDY, ignore=skipped)
    return ours(work, OTHER_STUDY)


def ignite_way(work: Path) -> dict[str, float]:
    """The metrics of pytorch-ignite as its article uses them, batch by batch; each has its own network."""
    import numpy as np
    from ignite.metrics import FID, PSNR, SSIM, InceptionScore, Metric
    from ignite.metrics.gan.utils import InceptionModel

    from vae.training.checkpoint import load_trained
    from vae.training.data_loader import load_split

    model, _ = load_trained(work / "runs" / STUDY / RUN)
    real, train = (load_split(work / "shards", split) for split in ("test", "train"))
    metrics: dict[str, Metric] = {}
    for name in ("rfid", "gfid", "floor"):
        metrics[f"{name}_paper"] = FID()
        network = InceptionModel(return_features=True)
        metrics[f"{name}_2048"] = FID(num_features=2048, feature_extractor=network)
    metrics |= {f"is_{name}": InceptionScore() for name in ("reconstructions", "samples", "real")}
    metrics |= {"ssim": SSIM(data_range=1.0), "psnr": PSNR(data_range=1.0)}

    def compare(name: str, images: torch.Tensor, target: torch.Tensor) -> None:
        metrics[f"{name}_paper"].update((images, target))
        metrics[f"{name}_2048"].update((images, target))

    for start in range(0, len(real), BATCH):
        rows = np.arange(start, min(start + BATCH, len(real)))
        images = real.take(rows).float() / 255
        with torch.no_grad():
            reconstructions = model.reconstruct(images)
            samples = model.sample(torch.randn(len(rows), *model.latent_shape))
        metrics["ssim"].update((reconstructions, images))
        metrics["psnr"].update((reconstructions, images))
        target = interpolate(images)
        kinds = {"rfid": reconstructions, "gfid": samples, "floor": train.take(rows).float() / 255}
        inputs = {name: interpolate(kind) for name, kind in kinds.items()}
        for name, kind in inputs.items():
            compare(name, kind, target)
        metrics["is_reconstructions"].update(inputs["rfid"])
        metrics["is_samples"].update(inputs["gfid"])
        metrics["is_real"].update(target)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def interpolate(images: torch.Tensor) -> torch.Tensor:
    """The article's: each image to 299 px by PIL."""
    from PIL import Image
    from torchvision.transforms import functional as transform

    pictures = [transform.to_pil_image(image) for image in images.repeat(1, 3, 1, 1)]
    resized = [picture.resize((299, 299), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.stack([transform.to_tensor(picture) for picture in resized])


# --- FID and Inception score of two folders -----------------------------------------------------------------


def read_folder(folder: Path) -> torch.Tensor:
    """Its pictures as uint8 [n, 3, 256, 256]."""
    import numpy as np
    from PIL import Image

    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def ours_of_folders(work: Path) -> dict[str, float]:
    """Both FIDs and the Inception score."""
    from vae.allocator import keep_freed_memory
    from vae.scoring.extractors import Features, load_extractor
    from vae.scoring.feature_scores import distance_scores, inception_scores
    from vae.scoring.resampling import NO_HALVES
    from vae.scoring.score_cards import ScoreCard
    from vae.study import Study

    keep_freed_memory()
    study = Study("x", inception_weights=str(work / HUB / TORCHVISION_FILE))
    extractor = load_extractor(study, torch.device("cpu"))
    found = []
    for split in ("test", "train"):
        batches = read_folder(work / "flat" / split)[:, :1].split(BATCH)
        found.append(Features(*map(torch.cat, zip(*map(extractor, batches), strict=True))))
    scores = distance_scores("floor", found[0], found[1], ScoreCard())
    scores |= inception_scores("is_real", found[1], ScoreCard(), NO_HALVES)
    return {key: entry.score.value or 0.0 for key, entry in scores.items()}


def torch_fidelity(work: Path) -> dict[str, float]:
    """FID and Inception score."""
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(
        input1=str(work / "flat" / "train"),
        input2=str(work / "flat" / "test"),
        batch_size=BATCH,
        cuda=False,
        isc=True,
        fid=True,
        verbose=False,
        cache=False,
        feature_extractor_weights_path=str(work / HUB / FIDELITY_FILE),
    )
    return {str(name): float(value) for name, value in found.items()}


def pytorch_fid(work: Path) -> dict[str, float]:
    """FID alone."""
    from pytorch_fid.fid_score import calculate_fid_given_paths

    folders = [str(work / "flat" / split) for split in ("test", "train")]
    return {"fid": float(calculate_fid_given_paths(folders, BATCH, "cpu", 2048))}


def torchmetrics(work: Path) -> dict[str, float]:
    """FID and Inception score, each with a network of its own."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore

    path = str(work / HUB / FIDELITY_FILE)
    fid, score = FrechetInceptionDistance(feature_extractor_weights_path=path), InceptionScore()
    real, fake = (read_folder(work / "flat" / split).split(BATCH) for split in ("test", "train"))
    for of_real, of_fake in zip(real, fake, strict=True):
        fid.update(of_real, real=True)
        fid.update(of_fake, real=False)
        score.update(of_fake)
    return {"fid": float(fid.compute()), "isc": float(score.compute()[0])}


def ignite_of_folders(work: Path) -> dict[str, float]:
    """FID on probabilities, and Inception score."""
    from ignite.metrics import FID, InceptionScore

    fid, score = FID(), InceptionScore()
    real, fake = (read_folder(work / "flat" / split)[:, :1].split(BATCH) for split in ("test", "train"))
    for of_real, of_fake in zip(real, fake, strict=True):
        inputs = interpolate(of_fake / 255), interpolate(of_real / 255)
        fid.update(inputs)
        score.update(inputs[0])
    return {"fid": float(fid.compute()), "is": float(score.compute())}


ALL_SCORES: dict[str, Callable[[Path], dict[str, float]]] = {
    "ignite, a pass for each": ignite_way,
    "ours, first run": first_run,
    "ours, from the second run on": second_run,
    "ours, first run of another study": other_study,
}
FID_AND_IS: dict[str, Callable[[Path], dict[str, float]]] = {
    "torch-fidelity: FID, IS": torch_fidelity,
    "pytorch-fid: FID": pytorch_fid,
    "torchmetrics: FID, IS": torchmetrics,
    "ignite: FID, IS": ignite_of_folders,
    "ours: both FIDs, IS": ours_of_folders,
}
CASES = ALL_SCORES | FID_AND_IS


# --- taking turns -------------------------------------------------------------------------------------------


def play(name: str, work: Path, through: str) -> dict[str, float]:
    """Seconds and peak memory of one case, in a process of its own."""
    words = [*shlex.split(through), sys.executable, __file__, "--work", str(work), "--play", name]
    environment = {**os.environ, "TORCH_HOME": str(work), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found}", file=sys.stderr)
    return found


def report_play(name: str, work: Path) -> None:
    """Play the case here, and print what it took."""
    scores = CASES[name](work)
    seconds = time.perf_counter() - STARTED
    usage = resource.getrusage(resource.RUSAGE_SELF)
    took = {"seconds": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss / 2**20}
    print(json.dumps({name: round(value, 2) for name, value in took.items()} | scores))


def limit(rounds: int = 5) -> float:
    """Inception forwards per second if its 5.7 G multiply-adds ran as fast as a large fp32 product here."""
    a, best = torch.rand(3072, 3072), 0.0
    for _ in range(rounds + 1):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 3072**3 / (time.perf_counter() - start))
    return best / (2 * 5.713e9)


def lines(plays: dict[str, list[dict[str, float]]], count: int) -> Iterator[str]:
    """Markdown tables of both questions."""
    from side_by_side import row, table

    for cases in (ALL_SCORES, FID_AND_IS):
        found = {name: [count / play["seconds"] for play in plays[name]] for name in cases if name in plays}
        if found:
            yield from table(found, "test images/s", next(iter(found)))
            yield ""
    yield row(["case", "seconds", "CPU seconds", "peak GiB"])
    yield row(["---"] * 4)
    for name, found_plays in plays.items():
        seconds, of_cpu = (
            statistics.median(play[key] for play in found_plays) for key in ("seconds", "cpu_s")
        )
        peak = max(play["peak_gb"] for play in found_plays)
        yield row([name, f"{seconds:.1f}", f"{of_cpu:.1f}", f"{peak:.2f}"])


def main() -> None:
    """Measure and print Markdown tables."""
    from side_by_side import conditions, draw, parser

    flags = parser(__doc__, rounds=1)
    flags.add_argument("--images", type=int, default=624, help="test images (%(default)s)")
    flags.add_argument("--cases", default="", help="only those whose name holds this")
    flags.add_argument("--through", default="", metavar="COMMAND", help="start every case with it")
    flags.add_argument("--work", type=Path, help="folder to prepare in, and to find prepared (default: none)")
    flags.add_argument("--play", choices=CASES, help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.play:
        report_play(given.play, given.work)
        return
    names = [name for name in CASES if given.cases in name]
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch) / "work"
        if not work.exists():
            prepare(work, given.images)
        plays: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(given.rounds):
            for name in names:
                plays[name].append(play(name, work, given.through))
    named = (
        "torch",
        "torchvision",
        "pytorch-ignite",
        "torch-fidelity",
        "pytorch-fid",
        "torchmetrics",
        "scipy",
    )
    print(f"\n{conditions(*named)}, {given.images} + {given.images} images")
    print(f"fp32 product of this machine: {limit():.1f} Inception forwards/s\n")
    print("\n".join(lines(plays, given.images)))
    if given.plot:
        found = {name: [given.images / play["seconds"] for play in plays[name]] for name in names}
        draw(given.plot, found, f"All scores of {given.images} test images, or FID and IS", "test images/s")


if __name__ == "__main__":
    main()
