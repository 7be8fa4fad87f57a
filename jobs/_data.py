"""Moved to slurm/launch_data.py; here until every front door asks there."""

from slurm.launch_data import SHARDS_DIR as SHARDS_DIR
from slurm.launch_data import safe_name as safe_name
