"""Cluster profiles: YAML that was damaged, or says what no site may."""

from pathlib import Path

import yaml
from hypothesis import strategies as st

from fuzzing.damage import VALUES, damaged, is_wrong
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.study import wrong_yaml
from slurm.profile import PROFILES_DIR, ClusterProfile, read_profile
from vae.config import YamlLoader, to_dict

FULL = to_dict(ClusterProfile())
FULL |= {"setup": ["module load cuda"], "container": "apptainer exec x.sif", "python": "/bin/python"}
FULL |= {"drop": ["mem"], "rename": {"mem": "mem-per-node"}, "extra": {"reservation": "course", "nice": 100}}


def bench(folder: Path) -> Bench:
    """One with a part of a wrong kind is refused; what is taken fits on a line of a script."""
    path = folder / "site.yaml"

    def play(case: Case) -> None:
        path.write_bytes(case.content)
        profile = read_profile(str(path))
        if is_wrong(yaml.load(case.content, YamlLoader), FULL, ("rename", "extra")):
            raise Finding(Fault.ACCEPTED, "a part of a profile is of a wrong kind")
        texts = [profile.partition, profile.account, profile.container, profile.python, *profile.setup]
        texts += map(str, (*profile.drop, *(profile.extra or {}).items(), *(profile.rename or {}).items()))
        if not all(text.isprintable() for text in texts):
            raise Finding(Fault.ACCEPTED, "a profile holds what no line of a script may")

    single = st.builds(
        lambda name, value: yaml.safe_dump({name: value}).encode(), st.sampled_from(list(FULL)), VALUES
    )
    contents = wrong_yaml(yaml.safe_dump(FULL).encode()) | single
    contents |= damaged((PROFILES_DIR / "example.yaml").read_bytes())
    return Bench(contents.map(lambda data: Case("site.yaml", data)), play)
