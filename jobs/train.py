"""Train one run here: begin it, or go on with it.

With one process this uses one GPU (or the CPU). Started by torchrun or `accelerate launch` it uses
one GPU per process. Ctrl-C, TERM and USR2 save at the next step; the same command goes on from there.

examples:
  python jobs/train.py runs/try/linear-s0 --run.data shards/demo --run.epochs 2
  python jobs/train.py runs/try/linear-s0              # go on after an interruption
  python jobs/train.py runs/again/linear-s0 --config runs/try/linear-s0/run.yaml
  torchrun --nproc-per-node 2 jobs/train.py runs/try/linear-s0
"""

import os
import re
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import _front

from data_prep.errors import SettingsError, ToolkitError
from data_prep.manifest import read_manifest
from slurm.node.signals import StopFlag
from vae.config import VARIANTS, RunConfig, read_settings, to_dict
from vae.run_dir import METRICS_FILE, RUN_FILE, run_name
from vae.study import prepare_run


def read_command() -> tuple[Path, RunConfig]:
    """The run folder and its settings: defaults, then a run.yaml (given, or the folder's own), then flags."""
    parser = _front.Parser(__doc__)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run; made if need be")
    add("--config", type=Path, metavar="FILE", help="begin with the settings of this run.yaml")
    parser.add_class_arguments(RunConfig, "run")
    flags = parser.parse_args()
    if flags.config and not flags.config.is_file():
        hint = "give the run.yaml of a run: runs/STUDY/RUN/run.yaml"
        raise SettingsError(f"no settings file {flags.config}", hint)
    own_file = flags.run_dir / RUN_FILE
    source = flags.config or (own_file if own_file.exists() else None)
    if source:
        settings = to_dict(read_settings(RunConfig, source))
        parser.set_defaults({f"run.{name}": value for name, value in settings.items()})
    elif flags.run.data:
        parser.set_defaults({"run.image_size_px": read_manifest(Path(flags.run.data)).image_size_px})
    return flags.run_dir, parser.instantiate(parser.parse_args()).run


def refuse_lone_process() -> None:
    """Raise SettingsError if `accelerate launch` was asked for several processes and started this alone."""
    several = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if several and not any(name.endswith("WORLD_SIZE") or name == "PMI_SIZE" for name in os.environ):
        alone = "accelerate launch has started one process and not --num_processes: it does so on the CPU"
        raise SettingsError(alone, "torchrun --nproc-per-node N jobs/train.py ... starts N")


def refuse_misnomer(run_dir: Path, config: RunConfig) -> None:
    """Raise SettingsError for a new run whose folder is named after another variant or seed."""
    own_name = run_name(config.variant, config.seed)
    is_like_ours = re.fullmatch(rf"({'|'.join(VARIANTS)})-s\d+", run_dir.name)
    if is_like_ours and run_dir.name != own_name and not (run_dir / RUN_FILE).exists():
        variant, seed = run_dir.name.rsplit("-s", 1)
        raise SettingsError(
            f"{run_dir.name} is the name of a run of another kind: the settings are those of {own_name}",
            f"add --run.variant {variant} --run.seed {seed}, or name the folder {own_name}, or otherwise",
        )


def main() -> int:
    # what to train, and on what
    refuse_lone_process()
    run_dir, config = read_command()
    refuse_misnomer(run_dir, config)
    if not config.data:
        raise SettingsError("no data to train on", "set --run.data to a folder that jobs/pack.py made")
    config = replace(config, data=str(Path(config.data).resolve()))
    read_manifest(Path(config.data))  # before anything is written

    # train, until the run is complete or a signal stops it
    should_stop = StopFlag(signal.SIGINT, signal.SIGTERM)
    new_folders = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        prepare_run(run_dir, config)
        # these import torch: seconds that a typing error need not wait for
        from vae.training.collectives import destroy_process_group
        from vae.training.trainer import train

        is_complete = train(run_dir, should_stop)
    except ToolkitError:
        # leave nothing behind of a run that could not even begin; what was there before stays
        if new_folders and not (run_dir / METRICS_FILE).exists():
            shutil.rmtree(run_dir, ignore_errors=True)
            with suppress(OSError):  # somebody else has put something there
                for folder in new_folders[1:]:
                    folder.rmdir()
        raise

    # say how it went
    destroy_process_group()
    if is_complete:
        print(run_dir)
        return 0
    _front.log.info("to go on: python jobs/train.py %s", run_dir)
    return 128 + (should_stop.received or [signal.SIGTERM])[-1]


if __name__ == "__main__":
    _front.run(main)
