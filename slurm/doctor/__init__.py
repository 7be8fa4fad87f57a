"""Checks of this machine, its SLURM and its nodes."""
