"""What a run is doing, in one word."""

from data_prep.json_records import Word


class RunState(Word):
    """What a run is doing: the same words in `status`, `why` and the report."""

    DONE = "done"
    """Trained and scored."""
    SCORING = "scoring"
    TRAINED = "trained"
    """Not scored, and not being scored now."""
    TRAINING = "training"
    QUEUED = "queued"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """Ended before it was complete, or not running as far as its files tell."""
    MISSING = "missing"
    """Never started."""
    UNKNOWN = "unknown"
    """SLURM does not answer."""
    DAMAGED = "damaged"
    """A file of it is not what this toolkit has written."""
