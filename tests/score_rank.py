"""One rank that scores a run: `score_rank.py STUDY_DIR RUN`, ranks from the environment."""

import sys
from pathlib import Path

import torch

from vae.scoring.evaluate import evaluate
from vae.study import read_study
from vae.training.collectives import destroy_process_group

torch.set_num_threads(1)
study_dir = Path(sys.argv[1])
evaluate(study_dir / sys.argv[2], read_study(study_dir))
destroy_process_group()
