"""Pack chest X-rays into HDF5 shards: checked, shuffled once, split by patient.

SOURCE is the Kaggle folder (train|val|test / NORMAL|PNEUMONIA), any folder of class folders, a CSV with
the columns path[,label][,split][,patient], a folder of DICOM files, or phantom:N for N drawn radiographs.
Folders and CSVs may hold JPEG, PNG, BMP and TIFF with 8 bits, or DICOM. Of DICOM files only pixels, their
geometry and salted hashes of patient and name leave the source; a CSV names their classes, or their folders
with --label-from folder. quarantine.jsonl names the files that could not be used (unless --hash-names),
and .patient-salt undoes the hiding: pass neither on. The same salt gives the same splits again.
OUT is the folder of the shards. Run the same command again to go on after an interruption.

examples:
  python jobs/pack.py chest_xray shards/kermany            # images in, shards out
  python jobs/pack.py phantom:600 shards/demo                # no images at hand
  python jobs/pack.py images.csv shards/mine --size 128 --aspect pad --workers 8
  python jobs/pack.py dicoms shards/mine --label-from folder # the folders' names may be published
  python jobs/pack.py chest_xray shards/kermany --task 2 --tasks 8     # one part, for an array job
  python jobs/pack.py chest_xray shards/kermany --finalize             # join the parts
  python jobs/pack.py shards/kermany --audit                 # counts, duplicates, leaks
  python jobs/pack.py shards/kermany --verify                # read every byte again
"""

import os
import sys
from pathlib import Path
from typing import get_args

import _front
from rich.console import Console

from data_prep import audit
from data_prep.errors import DataError
from data_prep.image import Aspect
from data_prep.manifest import Manifest, read_manifest
from data_prep.pack_plan import PackOptions, count_images, plan
from data_prep.packer import finalize, pack_part
from data_prep.progress import shown_progress
from data_prep.sources import Naming
from data_prep.verify import not_compared, verify

MODEL_MULTIPLE_PX = 16  # four layers halve the side each


def build_parser() -> _front.Parser:
    default = PackOptions()
    parser = _front.Parser(__doc__)
    add = parser.add_argument
    text = "images to pack; with --audit, --verify or --finalize alone the folder of the shards"
    add("source", metavar="SOURCE", help=text)
    add("out", metavar="OUT", nargs="?", type=Path, help="folder of the shards")
    # What decides the content of the shards.
    add("--size", type=int, default=default.size_px, metavar="PX", help="side of the square images")
    text = "stretch (as published), pad or crop"
    add("--aspect", choices=get_args(Aspect), default=default.aspect, help=text)
    text = "of the training images, cut by patient if the source has (almost) no validation images"
    add("--val-fraction", type=float, default=default.val_fraction, metavar="SHARE", help=text)
    add("--shard-images", type=int, default=default.shard_images, metavar="N", help="images per shard")
    add("--seed", type=int, default=default.seed, help="of splits and order")
    text = "of unusable files; above it nothing is packed (exit code 2)"
    add("--max-bad", type=float, default=default.max_bad, metavar="SHARE", help=text)
    text = "take the classes of DICOM files from the folders' names, which then go into the shards"
    add("--label-from", choices=("folder",), help=text)
    text = "write salted hashes for the names of all files and patients, in quarantine.jsonl, too"
    add("--hash-names", action="store_true", help=text)
    # How to pack, and what to do with packed shards.
    num_cpus = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=num_cpus, metavar="N", help="processes that decode")
    add("--task", type=int, metavar="T", help="pack part T only, counted from 0; then --finalize")
    add("--tasks", type=int, metavar="N", help="number of parts")
    text = "join parts that --task packed; bring an older folder up to date"
    add("--finalize", action="store_true", help=text)
    add("--audit", action="store_true", help="show what is in packed shards")
    add("--verify", action="store_true", help="compare every byte of packed shards with its checksums")
    return parser


def main() -> int:
    flags = build_parser().parse_args()
    packed = flags.out or Path(flags.source)
    if flags.verify:
        print(f"{verify(packed):,} images in {packed} are as they were packed")
        if rest := not_compared(packed):
            print(rest)
        return 0
    if flags.audit:
        show(read_manifest(packed), packed)
        return 0
    if flags.finalize and flags.out is None:
        show(finalize(packed), packed)
        return 0
    if flags.out is None:
        raise DataError("OUT is missing", "python jobs/pack.py SOURCE OUT")
    if (flags.task is None) != (flags.tasks is None):
        raise DataError("--task and --tasks belong together", "for example --task 0 --tasks 8")
    options = PackOptions(
        flags.size, flags.aspect, flags.val_fraction, flags.shard_images, flags.seed, flags.max_bad
    )
    if flags.size % MODEL_MULTIPLE_PX:
        text = "%d px: only images of a multiple of %d px can be trained on with the study's four layers"
        _front.log.warning(text, flags.size, MODEL_MULTIPLE_PX)
    naming = Naming(flags.label_from or "", flags.hash_names)
    shards = plan(flags.source, flags.out, options, naming=naming).shards
    sizes = f"{count_images(shards)} images for {len(shards)} shards"
    _front.log.info("%s: %s in %s", flags.source, sizes, flags.out)
    if not flags.finalize:
        part, num_parts = flags.task or 0, flags.tasks or 1
        with shown_progress(count_images(shards[part::num_parts]), "packing") as progress:
            pack_part(flags.out, part, num_parts, flags.workers, progress)
    if flags.task is None:
        show(finalize(flags.out), flags.out)
    return 0


def show(manifest: Manifest, out: Path) -> None:
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(audit.tables(audit.read(out)))
    counts = ", ".join(f"{manifest.num_images(split):,} {split}" for split in manifest.splits)
    print(f"packed: {out} ({counts}), fingerprint {manifest.fingerprint[:12]}")


if __name__ == "__main__":
    _front.run(main)
