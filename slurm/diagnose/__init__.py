"""Why a run is not done, and what its jobs have written."""
