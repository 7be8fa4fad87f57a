"""One rank of several trainings: `train_rank.py RUN_DIR[@STOP_AT_STEP]...`, ranks from the environment.

With a step behind the @ the highest rank asks to stop after that many steps, as a signal to it would.
"""

import os
import sys
from pathlib import Path

import torch

from vae.training.collectives import destroy_process_group
from vae.training.trainer import train


class StopAt:
    """Says yes after the given number of steps on the highest rank; 0 = never."""

    def __init__(self, step: int) -> None:
        self.is_chosen = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
        self.steps_left = step or -1

    def __call__(self) -> bool:
        self.steps_left -= 1
        return self.is_chosen and self.steps_left == 0


torch.set_num_threads(1)
for argument in sys.argv[1:]:
    run_dir, _, stop_at_step = argument.partition("@")
    train(Path(run_dir), StopAt(int(stop_at_step or 0)))
destroy_process_group()
