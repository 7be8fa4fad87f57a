"""slurm/doctor/profile_draft.py: the profile of a new site, from what SLURM says."""

import dataclasses
import re
from pathlib import Path

import pytest
from sites import CONFIG, CPU, GPU, MIXED, SITE

from data_prep.errors import ClusterError, SettingsError
from slurm.doctor.profile_draft import draft_profile, new_profile_path, profile_text, write_draft
from slurm.doctor.site import Partition, Site
from slurm.profile import ClusterProfile, read_profile


def test_a_draft_takes_the_gpus_and_stays_within_the_limits() -> None:
    assert draft_profile(SITE, ClusterProfile()) == ClusterProfile(
        partition="mixed",  # 36 GPUs
        cpu_partition="cpu",
        account="lab-x",
        gpu_type="",  # of two, the user chooses
        cpus_per_gpu=16,
        mem_per_gpu_gb=64,
        pack_limit_min=180,
        train_limit_min=1440,
    )
    default = dataclasses.replace(GPU, is_default=True, max_time_min=60)
    draft = draft_profile(Site({"SelectType": "select/linear"}, (MIXED, default)), ClusterProfile())
    assert (draft.partition, draft.gpu_type, draft.gpu_flag, draft.cpu_partition) == (
        "gpu",
        "a100",
        "gres",
        "",
    )
    assert (draft.train_limit_min, draft.evaluate_limit_min, draft.pack_limit_min) == (60, 60, 60)


def test_a_draft_keeps_what_its_base_says_and_slurm_does_not() -> None:
    base = ClusterProfile(partition="gpu", setup=("module load cuda",), account="other", qos="long")
    draft = draft_profile(SITE, base)
    assert (draft.partition, draft.setup, draft.account, draft.qos) == (
        "gpu",
        ("module load cuda",),
        "other",
        "long",
    )


def test_a_cluster_without_gpus_is_not_asked_for_them() -> None:
    draft = draft_profile(Site(CONFIG, (CPU,)), ClusterProfile())
    assert (draft.partition, draft.cpu_partition, draft.drop) == ("cpu", "", ("gpus-per-node",))
    with pytest.raises(ClusterError, match="no partition takes jobs"):
        draft_profile(Site(CONFIG, (Partition("gpu", num_unusable=2),)), ClusterProfile())
    with pytest.raises(ClusterError, match='"gpus" does not take jobs'):
        draft_profile(SITE, ClusterProfile(partition="gpus"))


@pytest.mark.parametrize("site", [SITE, Site(CONFIG, (CPU,), account="1234"), Site({}, (GPU,))])
def test_a_draft_is_read_back_as_it_was(tmp_path: Path, site: Site) -> None:
    draft = draft_profile(site, ClusterProfile(setup=("module load 'cuda: 12' # x",)))
    path = tmp_path / "site.yaml"
    write_draft(path, profile_text(draft, site))
    assert read_profile(str(path)) == draft
    assert len(re.findall(r"^# (\w+): ", path.read_text(), re.M)) > 5  # what may be set besides
    with pytest.raises(SettingsError, match="is there already"):
        write_draft(path, "")


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x.yaml", "a/b"])
def test_only_a_plain_name_becomes_a_profile(name: str) -> None:
    with pytest.raises(SettingsError, match="not allowed"):
        new_profile_path(name)


def test_a_profile_that_is_there_is_never_overwritten() -> None:
    with pytest.raises(SettingsError, match="is there already"):
        new_profile_path("example")
