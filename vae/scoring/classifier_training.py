"""Trains the classifiers of a data set: several seeds, early stopping on validation images, resumable.

Each epoch ends in a file that the next attempt goes on from; a classifier that is done is not trained again.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from msgspec import structs
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.errors import DamagedFile, DataError, RunError, SettingsError
from data_prep.files import fsync_path, only_holder, replacing, sha256_file, temporary_path
from data_prep.json_records import Record, write_record
from data_prep.manifest import read_manifest
from data_prep.progress import terminal_bar
from vae.allocator import keep_freed_memory
from vae.scoring.classifier import (
    BATCH_IMAGES,
    INPUT,
    Classifiers,
    load_network,
    logits,
    recipe,
    resnet,
    to_input,
)
from vae.scoring.classifier_record import (
    RECORD_FILE,
    TEST_FILE,
    ClassifierRecord,
    ClassifierSettings,
    classifiers_dir,
    part_name,
    read_classifiers,
    weights_name,
)
from vae.scoring.judgement import best_threshold, judge, mean_auc
from vae.scoring.ruler import measure_ruler
from vae.training.checkpoint import StateDict, check_archive, first_words
from vae.training.data_loader import ImageSplit, epoch_order, load_split

log = logging.getLogger(__name__)

LOCK_FILE = ".making"
MIN_IMAGES = 4  # of each class, to train, to choose and to test by


class Best(Record, frozen=True):
    """The best epoch so far."""

    epoch: int
    loss: float


def make_classifiers(data: Path, runs_dir: Path, settings: ClassifierSettings) -> ClassifierRecord:
    """Train what is missing of a packed folder's classifiers, and judge the ruler.

    DataError where the images are too few, or all of one class; SettingsError where there are others already;
    RunError where another process makes them.
    """
    train, val, test = (load_split(data, split) for split in ("train", "val", "test"))
    class_names = check_classes(data, {"train": train, "val": val, "test": test})
    folder = classifiers_dir(runs_dir, train.fingerprint)
    with only_holder(folder / LOCK_FILE) as is_ours:
        if not is_ours:
            raise RunError(f"another process makes the classifiers in {folder}", "wait until it has ended")
        if record := intact_record(runs_dir, train.fingerprint):
            if record.settings != settings:
                raise SettingsError(
                    f"{folder} holds classifiers that were made otherwise: {record.settings}",
                    "leave those settings away, or remove the folder to make others",
                )
            log.info("the classifiers of %s are there: %s", data, folder)
            return record
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            log.info("training classifiers on a CPU: %s", keep_freed_memory())
        facts = train, val, len(class_names), settings, device
        epochs = [train_one(folder, seed, *facts) for seed in range(settings.seeds)]
        return write_up(folder, settings, epochs, class_names, (train, val, test), device)


def intact_record(runs_dir: Path, fingerprint: str) -> ClassifierRecord | None:
    """What is there and whole; of damaged classifiers what is missing is made again."""
    try:
        return read_classifiers(runs_dir, fingerprint)
    except DamagedFile as error:
        log.warning("%s; the classifiers are made again", error)
        return None


def check_classes(data: Path, splits: dict[str, ImageSplit]) -> list[str]:
    """The names of the classes; DataError unless every split has some images of at least two of them."""
    names = list(read_manifest(data).class_names)
    for split, images in splits.items():
        counts = np.bincount(images.labels, minlength=len(names))
        if np.count_nonzero(counts >= MIN_IMAGES) < 2:
            told = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
            raise DataError(
                f"{data}: the {split} images cannot show whether a diagnosis is kept: {told}",
                f"two classes need at least {MIN_IMAGES} images each in train, val and test",
            )
    return names


def train_one(
    folder: Path,
    seed: int,
    train: ImageSplit,
    val: ImageSplit,
    num_classes: int,
    settings: ClassifierSettings,
    device: torch.device,
) -> int:
    """Train one classifier, or go on with it; the number of its best epoch. Writes its weights last."""
    made_from = recipe(train.fingerprint, vars(settings) | {"seed": seed, "classes": num_classes})
    part = folder / part_name(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = resnet(num_classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    state = read_part(part, made_from)
    first, best = 0, Best(0, float("inf"))
    best_weights: dict[str, Tensor] = {}
    if state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first, best, best_weights = state["epoch"], Best(*state["best"]), state["best_weights"]
    for epoch in range(first, settings.epochs):
        if epoch - best.epoch >= settings.patience:
            break
        train_epoch(network, optimizer, train, seed, epoch, settings.batch_size, device)
        loss, found = validate(network, val, device)
        text = "classifier %d, epoch %d of %d: validation loss %.4f, AUC %.4f"
        log.info(text, seed, epoch + 1, settings.epochs, loss, found)
        if loss < best.loss:
            best = Best(epoch + 1, loss)
            weights = network.state_dict()
            best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        position = {"made_from": made_from, "epoch": epoch + 1, "best": [best.epoch, best.loss]}
        states = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        write_part(part, {**position, **states, "best_weights": best_weights})
    if not best_weights:
        part.unlink(missing_ok=True)
        raise RunError(f"classifier {seed} has learnt nothing: its validation loss is never a number")
    with replacing(folder / weights_name(seed)) as path:
        save_file({name: value.contiguous() for name, value in best_weights.items()}, path)
        fsync_path(path)
    return best.epoch


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: ImageSplit,
    seed: int,
    epoch: int,
    batch_size: int,
    device: torch.device,
) -> None:
    """One pass over the training images, in an order of nothing but seed and epoch."""
    network.train()
    order = epoch_order(seed, epoch, len(train)).numpy()
    with terminal_bar("images") as bar:
        task = bar.add_task(f"classifier {seed}, epoch {epoch + 1}", total=len(order))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            if len(chosen) < 2:  # batch norm needs two
                continue
            labels = torch.from_numpy(train.labels[chosen].astype(np.int64)).to(device)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(to_input(train.take(chosen), device)), labels).backward()
            optimizer.step()
            bar.advance(task, len(chosen))


def predict(network: nn.Module, split: ImageSplit, device: torch.device) -> Tensor:
    """Logits of all images of a split, fp64 [n, classes], on the CPU."""
    network.eval()
    starts = range(0, len(split), BATCH_IMAGES)
    batches = (split.take(np.arange(start, min(start + BATCH_IMAGES, len(split)))) for start in starts)
    return torch.cat([logits(network, to_input(batch, device)) for batch in batches])


def validate(network: nn.Module, val: ImageSplit, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and AUC on the validation images."""
    found = predict(network, val, device)
    loss = F.cross_entropy(found, torch.from_numpy(val.labels.astype(np.int64))).item()
    return loss, mean_auc(F.softmax(found, 1).numpy(), val.labels)


def read_part(path: Path, made_from: str) -> StateDict | None:
    """Where an earlier attempt stopped, if it trained the same thing; damaged files count as none."""
    if not path.exists():
        return None
    try:
        check_archive(path)
        state: StateDict = torch.load(path, map_location="cpu", weights_only=True)
        return state if state["made_from"] == made_from else None
    except Exception as error:  # the unpickler raises many kinds
        log.warning("%s does not fit, the classifier begins anew: %s", path, first_words(error))
        return None


def write_part(path: Path, state: StateDict) -> None:
    """Replace the file by this state."""
    part = temporary_path(path)
    torch.save(state, part)
    fsync_path(part)
    part.replace(path)


def write_up(
    folder: Path,
    settings: ClassifierSettings,
    epochs: list[int],
    class_names: list[str],
    splits: tuple[ImageSplit, ImageSplit, ImageSplit],
    device: torch.device,
) -> ClassifierRecord:
    """Judge the real test images and the ruler, and write classifiers.json."""
    train, val, test = splits
    seeds = list(range(settings.seeds))
    networks = [load_network(folder, seed, len(class_names), device) for seed in seeds]
    of_val = [F.softmax(predict(network, val, device), 1).numpy() for network in networks]
    thresholds = [best_threshold(found, val.labels) for found in of_val]
    of_test = np.stack([F.softmax(predict(network, test, device), 1).numpy() for network in networks])
    with replacing(folder / TEST_FILE) as path:
        save_file({"probabilities": torch.from_numpy(of_test)}, path)
        fsync_path(path)
    record = ClassifierRecord(
        settings=settings,
        data_fingerprint=test.fingerprint,
        class_names=class_names,
        input=INPUT,
        seeds=seeds,
        epochs=epochs,
        val_auc=[mean_auc(found, val.labels) for found in of_val],
        thresholds=thresholds,
        sha256={name: sha256_file(folder / name) for name in (TEST_FILE, *map(weights_name, seeds))},
        real=judge(of_test, of_test, test.labels, thresholds),
        ruler=[],
    )
    ready = Classifiers(record, networks, of_test)
    ruler = measure_ruler(ready, train, test, device)
    record = structs.replace(record, ruler=ruler)
    write_record(folder / RECORD_FILE, record)
    for seed in seeds:
        (folder / part_name(seed)).unlink(missing_ok=True)
    return record
