"""The errors a user can cause or cure; every room raises these, the front doors print them.

ToolkitError
├── DataError      images, shards, manifests
├── SettingsError  flags, run.yaml, study.yaml, profiles
├── RunError       a run folder, a checkpoint, a training that went wrong
├── WeightsError   feature-extractor weights
├── ClusterError   SLURM and local launching
└── DamagedFile    a file of ours that is damaged, edited, or from a later version
"""

from __future__ import annotations


class ToolkitError(Exception):
    """One clear line: what was given and what is allowed; `hint` says what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DataError(ToolkitError):
    """Images, shards or a manifest cannot be used."""


class SettingsError(ToolkitError):
    """A flag or a settings file says something that is not allowed."""


class RunError(ToolkitError):
    """A run folder or checkpoint cannot be used, or a training stopped for a reason of its own."""


class WeightsError(ToolkitError):
    """Feature-extractor weights are missing, truncated or not the known ones."""


class ClusterError(ToolkitError):
    """The scheduler, or the local launcher, cannot do what was asked."""


class DamagedFile(ToolkitError):
    """A file does not hold what this toolkit writes there."""
