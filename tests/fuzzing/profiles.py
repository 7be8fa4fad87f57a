"""Cluster profiles: YAML that was damaged, or says what no site may."""

from pathlib import Path

import yaml
from fuzzing.inputs import RAW, VALUES, Bench, Case, Fault, Finding, damaged, is_wrong, wrong_values
from hypothesis import strategies as st

from slurm.profile import PROFILES_DIR, ClusterProfile, read_profile
from vae.config import to_dict

FULL = {
    **to_dict(ClusterProfile()),
    **{"partition": "gpu", "setup": ["module load cuda"], "container": "apptainer exec x.sif", "python": "/bin/python"},
    **{"drop": ["mem"], "rename": {"mem": "mem-per-node"}, "extra": {"reservation": "course", "nice": 100}},
}


def bench(folder: Path) -> Bench:
    """A profile with a part of a wrong kind is refused; what is taken fits on a line of a script."""
    path = folder / "site.yaml"
    odd = wrong_values(FULL).map(lambda value: yaml.safe_dump(value).encode())
    single = st.builds(lambda name, value: yaml.safe_dump({name: value}).encode(), st.sampled_from(list(FULL)), VALUES)
    contents = odd | single | damaged((PROFILES_DIR / "example.yaml").read_bytes()) | damaged(yaml.safe_dump(FULL).encode()) | RAW

    def play(case: Case) -> None:
        path.write_bytes(case.content)
        profile = read_profile(str(path))
        if is_wrong(yaml.safe_load(case.content), FULL, ("rename", "extra")):
            raise Finding(Fault.ACCEPTED, "a part of a profile is of a wrong kind")
        texts = [profile.partition, profile.account, profile.container, profile.python, *profile.setup, *profile.drop]
        texts += [*map(str, (profile.extra or {}).items()), *map(str, (profile.rename or {}).items())]
        if not all(text.isprintable() for text in texts):
            raise Finding(Fault.ACCEPTED, "a profile holds what no line of a script may")

    return Bench(contents.map(lambda data: Case("site.yaml", data)), play)
