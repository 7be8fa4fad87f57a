"""Score finished runs: FID, Inception score, SSIM, PSNR and losses, each with its score card.

A run is scored anew; of a study, what has no scores yet. Prints the table of scores. With one process
this uses one GPU (or the CPU); started by torchrun it uses one GPU per process, with the same result.

examples:
  python jobs/evaluate.py chest                                # what the study runs/chest lacks
  python jobs/evaluate.py chest/linear-s0                      # one run, anew
  python jobs/evaluate.py chest --inception-weights weights/inception.pth
  python jobs/evaluate.py demo --extractor smoke               # tiny seeded network: not comparable
  torchrun --nproc-per-node 2 jobs/evaluate.py runs/chest/linear-s0
"""

import dataclasses
import os
from pathlib import Path

import _front

from data_prep.errors import DamagedFile
from vae.report.report import score_table
from vae.report.run_summary import RunSummary, read_summary
from vae.scoring.classifier_record import read_classifiers
from vae.scoring.inception_weights import EXTRACTORS, check, identify, locate
from vae.study import Study, check_replacement, find_target, read_study


def is_due(run_dir: Path, study: Study) -> bool:
    """Whether a run is trained, and has no whole scores by the very extractor that is asked for."""
    run = read_summary(run_dir)
    if run.config is None or run.done is None or run.is_lost:
        return False  # the table of scores says why
    if run.scores is None or run.scores.extractor != study.extractor:
        return True
    if study.scores == "full" != run.scores.extent:
        return True
    if lacks_diagnosis(run):
        return True
    weights = locate(study.inception_weights)
    return study.extractor == "inception" and run.scores.extractor_sha256 != identify(weights)[0]


def lacks_diagnosis(run: RunSummary) -> bool:
    """Whether there are whole classifiers of its images that did not judge its reconstructions yet."""
    assert run.scores is not None
    try:
        record = read_classifiers(run.folder.parent.parent, run.scores.data_fingerprint)
    except DamagedFile:  # evaluate says so
        return False
    score = run.score("auc")
    return record is not None and (score is None or score.card.extractor_sha256 != record.digest)


def main() -> int:
    """Score what the command line names; 1 if a run has no scores then, of which the table tells."""
    parser = _front.Parser(__doc__).add_target()
    text = "inception: torchvision's Inception v3, as published; smoke: tiny seeded network\n"
    text += "(default: what study.yaml says, else inception)"
    parser.add_argument("--extractor", choices=EXTRACTORS, help=text)
    text = "file with Inception v3 weights\n(default: what study.yaml says, else torch's hub cache)"
    parser.add_argument("--inception-weights", metavar="PATH", help=text)
    text = "fast leaves out what takes long: sampled latents, and how sure the floors are\n"
    text += "(default: what study.yaml says, else full)"
    parser.add_argument("--scores", choices=("full", "fast"), help=text)
    text = "let scores by the smoke network take the place of others"
    parser.add_argument("--replace", action="store_true", help=text)
    flags = parser.parse_args()

    # which runs, and by what
    study_dir, run = find_target(flags.what, flags.runs_dir)
    names = ("extractor", "inception_weights", "scores")
    changes = {name: getattr(flags, name) for name in names}
    given = {name: value for name, value in changes.items() if value}
    study = dataclasses.replace(read_study(study_dir), **given)
    check(study)
    due = [run] if run else [name for name in study.runs if is_due(study_dir / name, study)]
    if not flags.replace:
        check_replacement(study_dir, study, due)

    # score them, and show what there is
    if due:
        # these import torch: seconds that a typing error need not wait for
        from vae.scoring.evaluate import evaluate
        from vae.training.collectives import destroy_process_group

        for name in due:
            evaluate(study_dir / name, study)
        destroy_process_group()
    if os.environ.get("RANK", "0") != "0":
        return 0
    wanted = [run] if run else study.runs
    print(score_table(study_dir, wanted))
    without = [name for name in wanted if read_summary(study_dir / name).scores is None]
    if without:
        _front.log.warning("%d of %d runs have no scores: %s", len(without), len(wanted), ", ".join(without))
    return int(bool(without))


if __name__ == "__main__":
    _front.run(main)
