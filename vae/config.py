"""What to train: every setting of a run, once, with its unit and the reason for its default.

Imports no torch, so `--help` and `--dry-run` stay quick on a login node.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from data_prep.errors import SettingsError
from data_prep.files import write_text

VARIANTS = ("linear", "direct", "spatial")
Variant = Literal["linear", "direct", "spatial"]

# What `--variant` accepts: the published two, or ours beside them.
VARIANT_GROUPS: dict[str, tuple[str, ...]] = {name: (name,) for name in VARIANTS}
VARIANT_GROUPS |= {"both": ("linear", "direct"), "all": VARIANTS}


@dataclass(frozen=True)
class RunConfig:
    """One training run. The defaults are the published study's."""

    variant: Variant = "linear"
    """linear: VAE with a flat latent; direct: autoencoder without one; spatial: VAE with latent maps."""

    seed: int = 0
    """Seeds weights, sample order and noise."""

    data: str = ""
    """Folder of packed shards (the one with manifest.json)."""

    image_size_px: int = 256
    """Side of the square images; must be the shards' and divisible by 2 per layer."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of the encoder's stride-2 convolutions; the decoder mirrors them."""

    latent_dim: int = 256
    """Number of latents of the `linear` variant."""

    latent_channels: int = 16
    """Latent channels of the `spatial` variant: 16x16x16 = 4,096 latents at 256 px, 1/16 of the pixels."""

    beta: float = 1e-4
    """Weight of the KL divergence (the published study's)."""

    epochs: int = 15
    """Passes over the training split."""

    max_steps: int = 0
    """Stop after this many optimiser steps; 0 = all epochs. For debugging and tests."""

    batch_size: int = 32
    """Images per optimiser step over all GPUs together, so results do not depend on their number."""

    accumulate: int = 1
    """Passes each rank splits its share of a batch into: saves memory, changes no result."""

    lr: float = 1e-3
    """Adam's learning rate."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over time; cosine falls to 0 at the last step."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""

    clip_norm: float = 0.0
    """Largest norm of the gradient of the loss per image; 0 = no clipping."""

    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = "auto"
    """auto: bf16 where the GPU has it, else fp32. fp64 is for proofs of equality."""

    compile: bool = False
    """Run the model through torch.compile."""

    loader: Literal["auto", "device", "host"] = "auto"
    """device: all images in GPU memory; host: memory map and a prefetch thread; auto: by size."""

    gradient_exchange: Literal["full", "bf16"] = "full"
    """What ranks exchange gradients in; bf16 halves the traffic and rounds them."""

    profile_steps: str = ""
    """Record steps A to B, as A:B, for TensorBoard or Perfetto, and log the slowest operations."""

    trackers: tuple[str, ...] = ("tensorboard",)
    """accelerate trackers (tensorboard, wandb, ...); metrics.jsonl is always written."""

    log_every_steps: int = 10
    """Steps between log lines; only these wait for the GPU."""

    val_every_epochs: int = 1
    """Epochs between validation passes."""

    checkpoint_every_min: float = 10.0
    """Minutes of training an unannounced kill may cost; every epoch is saved as well."""

    keep_checkpoints: int = 2
    """Newest checkpoints kept; two, so that a damaged one has one before it."""

    def __post_init__(self) -> None:
        """Raise SettingsError, which names what is allowed, for values that no run can use."""
        counts = ("image_size_px", "latent_dim", "latent_channels", "epochs", "batch_size", "accumulate")
        for name in (*counts, "log_every_steps", "val_every_epochs", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "max_steps", "warmup_steps", "beta", "clip_norm"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("seed", self.seed < 2**63, "below 2**63")
        for name in ("lr", "checkpoint_every_min"):
            self._require(name, getattr(self, name) > 0, "above 0")
        self._require("widths", len(self.widths) >= 1 and min(self.widths) >= 1, "positive counts")
        shrink = 2 ** len(self.widths)
        allowed = f"a multiple of {shrink} (one halving per layer)"
        self._require("image_size_px", self.image_size_px % shrink == 0, allowed)
        is_range = re.fullmatch(r"[1-9]\d{0,8}:[1-9]\d{0,8}", self.profile_steps) and self.profiled_steps
        self._require("profile_steps", bool(is_range or not self.profile_steps), "A:B, 1 <= A <= B")

    @property
    def profiled_steps(self) -> range:
        """The optimiser steps to profile, 1-based; empty for none."""
        first, _, last = self.profile_steps.partition(":")
        return range(int(first), int(last) + 1) if last else range(0)

    def _require(self, name: str, is_allowed: bool, allowed: str) -> None:
        if not is_allowed:
            raise SettingsError(f"{name} = {getattr(self, name)!r}; allowed: {allowed}")


# May change between launches of one run: they steer how it runs, not what comes out.
OPERATIONAL = {"accumulate", "compile", "loader", "trackers", "profile_steps"}
OPERATIONAL |= {"log_every_steps", "checkpoint_every_min", "keep_checkpoints"}

Settings = TypeVar("Settings")

# Settings are flat. A file of this many characters can indent no deeper than that.
MAX_NESTING, MAX_YAML_CHARS = 500, 10_000
# So much of a wrong value is quoted.
MAX_SHOWN_CHARS = 200

# What a setting of each type is called, by the beginning of its annotation.
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
KINDS |= {"tuple": "a list, as in [a, b]", "dict": "names and values, as in {a: 1}"}


class YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, which also takes 1e-4 for a number, as YAML 1.2 does."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def from_dict(kind: type[Settings], values: dict[str, Any], source: str) -> Settings:
    """A settings dataclass from plain values; SettingsError names what is wrong and its `source`."""
    annotations = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in annotations:
            near = get_close_matches(str(name)[:MAX_SHOWN_CHARS], annotations, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(annotations)}"
            raise SettingsError(f"{source}: unknown setting {str(name)[:MAX_SHOWN_CHARS]!r}", hint)
    try:
        return msgspec.convert(values, kind)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}", error.hint) from error
    except msgspec.ValidationError as error:
        if place := re.search(r" - at `\$\.(\w+)", str(error)):
            name = place[1]
            given = values[name] if isinstance(values[name], str) else reprlib.repr(values[name])
            problem = f'"{name}": expected {expected(annotations[name])}, not {given[:MAX_SHOWN_CHARS]}'
        else:
            problem = f"the following arguments are required: {str(error).split('`')[1]}"
        raise SettingsError(f"{source}: {problem}") from error


def expected(annotation: str) -> str:
    """What a setting of that annotation takes, in plain words."""
    if choices := re.fullmatch(r"Literal\[(.*)\]|Variant", annotation):
        return f"one of {choices[1] or ', '.join(VARIANTS)}"
    return next((words for kind, words in KINDS.items() if annotation.startswith(kind)), annotation)


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """A settings dataclass from its YAML file; SettingsError says what is wrong with the file."""
    try:
        text = path.read_text(encoding="utf-8")
        values = None if could_nest_deep(text) else yaml.load(text, YamlLoader)
    except FileNotFoundError as error:
        raise SettingsError(f"no settings file {path}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} is not a settings file: it must hold `name: value` lines")
    return from_dict(kind, values, str(path))


def could_nest_deep(text: str) -> bool:
    """Whether YAML may nest so deep that PyYAML's loader in C overflows its stack, and ends the process."""
    in_a_line = max((line.count("- ") + line.count("? ") for line in text.splitlines()), default=0)
    return max(text.count("[") + text.count("{"), in_a_line, len(text) // MAX_YAML_CHARS) > MAX_NESTING


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values that YAML and JSON can hold (tuples become lists)."""
    values = asdict(settings).items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def write_settings(settings: Any, path: Path) -> None:
    """Write a settings dataclass as YAML, atomically; `read_settings` gives an equal one back."""
    write_text(path, yaml.safe_dump(to_dict(settings), sort_keys=False))


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines `name: old -> new` for every setting that decides the result and is not the same."""
    return [
        f"{field.name}: {getattr(old, field.name)!r} -> {getattr(new, field.name)!r}"
        for field in fields(RunConfig)
        if field.name not in OPERATIONAL and getattr(old, field.name) != getattr(new, field.name)
    ]
