"""Make classifiers of the label, by which scoring tells whether reconstructions keep the diagnosis.

DATA is a folder that jobs/pack.py made, with labels. Trains a ResNet-18 for each of three seeds on the
training images, stops where the validation images (of other patients) say so, and judges the real test
images and a ruler of cheap copies: JPEG, fewer pixels, PCA. Once for a data set: scoring finds what is there
and uses it for every study under --runs-dir. Run the same command again to go on after an interruption.

examples:
  python jobs/classify.py shards/kermany
  python jobs/classify.py shards/kermany --runs-dir /shared/runs
  python jobs/evaluate.py chest                  # then: scores the study again, with the diagnosis
"""

from pathlib import Path

import _front

from data_prep.errors import SettingsError
from data_prep.manifest import read_manifest


def main() -> None:
    parser = _front.Parser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of packed images")
    parser.add_runs_dir()
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="classifiers, one for each seed")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of each, at most")
    flags = parser.parse_args()
    for name in ("seeds", "epochs"):
        if not 1 <= getattr(flags, name) <= 100:
            raise SettingsError(f"--{name} {getattr(flags, name)}; allowed: 1 to 100")
    read_manifest(flags.data)  # before torch is imported
    # these import torch: seconds that a typing error need not wait for
    from vae.scoring.classifier_record import ClassifierSettings, classifiers_dir
    from vae.scoring.classifier_training import make_classifiers

    record = make_classifiers(flags.data, flags.runs_dir, ClassifierSettings(flags.seeds, flags.epochs))
    print(f"real test images: AUC {record.real.auc:.4f}, mean of {len(record.seeds)} classifiers")
    for entry in record.ruler:
        size = f", {entry.bytes_per_image:,.0f} bytes" if entry.bytes_per_image else ""
        print(f"  {entry.name}{size}: AUC {entry.judgement.auc:.4f}, PSNR {entry.psnr_db:.1f} dB")
    print(classifiers_dir(flags.runs_dir, record.data_fingerprint))


if __name__ == "__main__":
    _front.run(main)
