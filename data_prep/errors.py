"""The errors a user can cause or cure; every room raises these, the front doors print them."""


class ToolkitError(Exception):
    """One clear line: what was given and what is allowed; `hint` says what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DataError(ToolkitError):
    """Images, shards or a manifest cannot be used."""


class SettingsError(ToolkitError):
    """A flag or a settings file (run.yaml, study.yaml, a profile) says something that is not allowed."""


class RunError(ToolkitError):
    """A run folder or checkpoint cannot be used, or a training stopped for a reason of its own."""


class WeightsError(ToolkitError):
    """Feature-extractor weights are missing, truncated or not the known ones."""


class ClusterError(ToolkitError):
    """The scheduler, or the local launcher, cannot do what was asked."""


class DamagedFile(ToolkitError):
    """A file of ours is damaged, edited, or from a later version."""
