"""scores.csv: every score of every run, one a line, with what its card says."""

from __future__ import annotations

import csv
import io

from vae.report.run_summary import RunSummary

SCORE = ("score", "value", "unit", "reason")
CARD = (
    *("n_real", "n_fake", "n", "split", "images", "layer", "computed_by"),
    *("extractor", "extractor_sha256", "label", "checkpoint_sha256", "data_fingerprint"),
)


def scores_csv(study: str, runs: list[RunSummary]) -> str:
    """The whole file as text; a run without scores has one line with the reason."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("study", "run", "variant", "seed", *SCORE, *CARD), lineterminator="\n")
    writer.writeheader()
    for run in runs:
        seed = run.config.seed if run.config else ""
        run_cells = {"study": study, "run": run.name, "variant": run.variant, "seed": seed}
        if not run.scores:
            writer.writerow({**run_cells, "reason": f"{run.state}: {run.reason}"})
            continue
        for key, score in run.scores.scores.items():
            score_cells = dict(zip(SCORE, (key, score.value, score.unit, score.reason), strict=True))
            facts = score.card.facts()
            card_cells = {name: facts[name] for name in CARD if name in facts}
            writer.writerow({**run_cells, **score_cells, **card_cells})
    return text.getvalue()
