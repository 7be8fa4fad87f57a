"""slurm/profile.py: site facts, and nothing that SLURM or a shell could read twice."""

from pathlib import Path

import pytest

from data_prep.errors import SettingsError
from slurm.profile import ClusterProfile, known_profiles, read_profile


def test_empty_name_gives_the_defaults() -> None:
    assert read_profile("") == ClusterProfile()


def test_every_profile_in_the_toolkit_can_be_read() -> None:
    assert "example" in known_profiles()
    for name in known_profiles():
        assert isinstance(read_profile(name), ClusterProfile)


def test_unknown_profile_names_the_known_ones_and_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r'Unknown profile "alpin"\. Known: .*example') as caught:
        read_profile("alpin")
    assert caught.value.hint == (
        "give a known name, a path that ends in .yaml, or copy slurm/profiles/example.yaml to "
        "slurm/profiles/alpin.yaml"
    )


def test_a_profile_can_be_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("partition: gpu\nsetup: [module load cuda]\nextra: {reservation: course, nice: 100}\n")
    profile = read_profile(str(path))
    assert (profile.partition, profile.setup, profile.extra) == (
        "gpu",
        ("module load cuda",),
        {"reservation": "course", "nice": 100},
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("setup: module load cuda", '"setup": expected a list, as in [a, b], not module load cuda'),
        ("train_limit_min: 5h", '"train_limit_min": expected a whole number, not 5h'),
        ("extra: {nice: 1.5}", "\"extra\": expected names and values, as in {a: 1}, not {'nice': 1.5}"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_in_plain_words(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_profile(str(path))
    assert str(caught.value) == f"{path}: {said}"


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("partitions: gpu\n")
    with pytest.raises(SettingsError, match="unknown setting 'partitions'") as caught:
        read_profile(str(path))
    assert caught.value.hint == "did you mean partition?"


@pytest.mark.parametrize("name", ["partition", "cpu_partition", "account", "qos", "constraint", "gpu_type"])
@pytest.mark.parametrize(
    "value", ["a\n#SBATCH --uid=0", "a b", '"a', "a'b", "-a", "$(id)", "`id`", "a\\b", "é"]
)
def test_words_that_sbatch_would_misread_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        ClusterProfile(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["a100", "gpu-long", "a100&nvlink", "[rack1|rack2]", "user@site", "lab/x+y"]
)
def test_words_that_sites_use_are_taken(value: str) -> None:
    assert ClusterProfile(constraint=value).constraint == value


def test_line_breaks_and_odd_flags_are_refused() -> None:
    for settings in (
        {"setup": ("module load cuda\nrm -r x",)},
        {"container": "apptainer exec x.sif\n"},
        {"python": "python\r"},
        {"extra": {"uid 0": "1"}},
        {"extra": {"comment": "a\n#SBATCH --uid=0"}},
        {"drop": ("--mem",)},
        {"drop": ("job-name",)},
        {"extra": {"job-name": "mine"}},
        {"extra": {"array": "0-9"}},
        {"drop": ("output",)},
        {"rename": {"dependency": "depends"}},
        {"container": "apptainer exec 'my image.sif"},
        {"python": ".venv/bin/python"},
        {"rename": {"mem": "mem\n#SBATCH --uid"}},
    ):
        with pytest.raises(SettingsError):
            ClusterProfile(**settings)  # type: ignore[arg-type]


def test_limits_and_warnings_are_whole_times() -> None:
    with pytest.raises(SettingsError, match="train_limit_min = 0; allowed: at least 1"):
        ClusterProfile(train_limit_min=0)
    with pytest.raises(SettingsError, match="warning_s = -1; allowed: 0 or more"):
        ClusterProfile(warning_s=-1)
