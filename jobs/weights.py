"""Fetch or check the Inception v3 weights that FID and IS are computed with.

fetch  download torchvision's Inception_V3_Weights.DEFAULT (104 MB) into torch's hub cache
check  say whether the weights are there and are the published ones

examples:
  python jobs/weights.py fetch                              # on a machine with internet
  python jobs/weights.py check
  python jobs/weights.py fetch --inception-weights weights/inception.pth
"""

import _front

from vae.scoring.inception_weights import fetch, identify, locate


def main() -> None:
    parser = _front.Parser(__doc__)
    parser.add_argument("action", choices=("fetch", "check"))
    text = "the file to fetch to, or to check; else torch's hub cache (TORCH_HOME)"
    parser.add_argument("--inception-weights", default="", metavar="PATH", help=text)
    flags = parser.parse_args()
    path = locate(flags.inception_weights)
    if flags.action == "fetch":
        print(f"{path}  SHA-256 {fetch(path)}")
    else:
        digest, label = identify(path)
        print(f"{path}  SHA-256 {digest}  {label or 'the published weights'}")


if __name__ == "__main__":
    _front.run(main)
