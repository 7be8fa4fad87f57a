"""Is the diagnosis kept? What classifiers of the label say of reconstructions, beside the real images."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from vae.scoring.judgement import Judgement, judge
from vae.scoring.resampling import Measured, measured, without
from vae.scoring.score_cards import ScoreCard
from vae.scoring.subject import Subject

Array = npt.NDArray[np.float64]

# What is told of reconstructions from the mean of the latents, and of real images.
KINDS = ("auc", "sensitivity", "specificity", "brier")
NOTE = (
    "the label may show in how a film was taken, not only in what it shows; classifiers that never saw a "
    "reconstruction also judge its changed look"
)


def diagnosis_scores(
    subject: Subject, found: Array | None, suffix: str, card: ScoreCard
) -> dict[str, Measured]:
    """auc, auc_drop and more of reconstructions that the classifiers gave these probabilities,
    [classifiers, n, classes]; with `suffix`, auc and auc_drop alone."""
    kinds = ("auc",) if suffix else KINDS
    keys = [f"{kind}{suffix}" for kind in kinds] + [f"auc_drop{suffix}"]
    reals = [] if suffix else [f"{kind}_real" for kind in KINDS]
    changed = [] if suffix else ["decisions_changed"]
    if subject.classifiers is None or found is None:
        return without([*keys, *changed, *reals], subject.why_no_classifiers, card)
    record, real = subject.classifiers.record, subject.classifiers.of_test
    labels, halves = subject.test.labels.astype(int), subject.halves
    card = replace(card, n=len(labels), input=record.input, extractor_sha256=record.digest)
    card = replace(card, extractor="classifiers", computed_by=f"mean of {len(record.seeds)} ResNet-18")

    def judgement(probabilities: Array, rows: npt.NDArray[np.int64] | slice) -> Judgement:
        of_rows = probabilities[:, rows], real[:, rows]
        return judge(*of_rows, labels[rows], record.thresholds)

    whole = {"found": judgement(found, slice(None)), "real": judgement(real, slice(None))}
    of_halves = {
        "found": [judgement(found, rows) for rows in halves.sets],
        "real": [judgement(real, rows) for rows in halves.sets],
    }

    def entry(key: str, of: Callable[[Judgement, Judgement], float], note: str = NOTE) -> dict[str, Measured]:
        """One score, from what is said of reconstructions and of real images."""
        pairs = zip(of_halves["found"], of_halves["real"], strict=True)
        draws = [of(ours, theirs) for ours, theirs in pairs]
        value = of(whole["found"], whole["real"])
        return {key: measured(key, value, replace(card, note=note), halves, draws)}

    scores: dict[str, Measured] = {}
    for kind in kinds:
        note = f"{NOTE}; {told(whole['found'].auc_of_each)}" if kind == "auc" else NOTE
        scores |= entry(f"{kind}{suffix}", lambda ours, _, kind=kind: getattr(ours, kind), note)  # type: ignore[misc]
    scores[f"auc{suffix}"] = scores[f"auc{suffix}"]._replace(of_each=tuple(whole["found"].auc_of_each))
    scores |= entry(f"auc_drop{suffix}", lambda ours, theirs: theirs.auc - ours.auc)
    if changed:
        scores |= entry("decisions_changed", lambda ours, _: ours.decisions_changed)
    card = replace(card, images="test images", latents="")
    for key, kind in zip(reals, KINDS, strict=False):
        note = told(whole["real"].auc_of_each) if kind == "auc" else ""
        scores |= entry(key, lambda _, theirs, kind=kind: getattr(theirs, kind), note)  # type: ignore[misc]
    return scores


def told(auc_of_each: list[float]) -> str:
    """How far the classifiers are apart."""
    return f"{min(auc_of_each):.4f} to {max(auc_of_each):.4f} over {len(auc_of_each)} classifiers"
