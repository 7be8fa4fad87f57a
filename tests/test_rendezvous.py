"""slurm/node/rendezvous.py: the ranks of one attempt find each other, and leave nothing behind."""

import json
import os
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from slurm_jobs import job_env

from data_prep.errors import ClusterError
from slurm.node.environment import single_process
from slurm.node.rendezvous import (
    PORTS,
    Address,
    free_port,
    own_address,
    rendezvous,
    wait_for_rendezvous,
)

FIRST = job_env(job="30_1", cpus=2)
SECOND = replace(FIRST, rank=1, local_rank=1)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, "OMP_NUM_THREADS", "SLURM_LAUNCH_NODE_IPADDR"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_alone_meets_nobody(tmp_path: Path) -> None:
    with rendezvous(single_process(), tmp_path):
        assert os.environ["WORLD_SIZE"] == "1"
        assert "LOCAL_RANK" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_attempt_left_is_cleared_also_by_one_process(tmp_path: Path) -> None:
    (tmp_path / ".rendezvous-7_0-r1.json").touch()
    with rendezvous(single_process(), tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_ranks_find_each_other_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    met: list[Address] = []
    path = tmp_path / f".rendezvous-{FIRST.tag}.json"
    waiter = threading.Thread(target=lambda: met.append(wait_for_rendezvous(SECOND, path, 20)))
    waiter.start()
    with rendezvous(FIRST, tmp_path):
        waiter.join()
        assert met == [Address("127.0.0.1", int(os.environ["MASTER_PORT"]))]
        ranks = {name: os.environ[name] for name in RANK_VARIABLES if name != "MASTER_PORT"}
        assert ranks == {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
        }
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert list(tmp_path.iterdir()) == []


def test_the_address_of_an_earlier_attempt_is_never_taken(tmp_path: Path) -> None:
    old = tmp_path / f".rendezvous-{FIRST.tag}.json"
    old.write_text(json.dumps({"address": "127.0.0.1", "port": 1}))
    restarted = replace(SECOND, restart=1)
    path = tmp_path / f".rendezvous-{restarted.tag}.json"
    with pytest.raises(
        ClusterError, match=r"rank 1 on n1 timed out after 0 s waiting for rank 0's .*30_1-r1"
    ):
        wait_for_rendezvous(restarted, path, limit_s=0.3)
    with rendezvous(replace(FIRST, restart=1), tmp_path):
        assert not old.exists()
        assert wait_for_rendezvous(restarted, path).port in PORTS


def test_an_address_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rendezvous.json"
    path.write_text(json.dumps({"address": "no-such-node.invalid", "port": 20_000}))
    with pytest.raises(ClusterError, match=r"rank 1 on n1 cannot resolve .* no-such-node\.invalid"):
        wait_for_rendezvous(SECOND, path)


def test_a_free_port_can_be_bound_and_a_taken_one_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("", free_port()))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setattr("slurm.node.rendezvous.PORTS", range(taken, taken + 1))
        monkeypatch.setattr("random.SystemRandom.sample", lambda _self, ports, _count: list(ports))
        with pytest.raises(ClusterError, match="no free TCP port"):
            free_port()


def test_the_environment_is_taken_back_at_the_end(tmp_path: Path) -> None:
    """Also if the work fails."""
    before = dict(os.environ)
    with suppress(KeyError), rendezvous(FIRST, tmp_path):
        assert os.environ["WORLD_SIZE"] == "2"
        raise KeyError
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []


def test_on_several_nodes_the_address_is_what_slurm_itself_connects_to(
    fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node names need not resolve, and some sites have no scontrol on their nodes."""
    on_two = replace(FIRST, num_nodes=2)
    assert own_address(FIRST) == "127.0.0.1"
    assert own_address(on_two) == "10.0.0.1"
    fake_slurm.uninstall("scontrol")
    with pytest.raises(ClusterError, match="the address of n1 is unknown"):
        own_address(on_two)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7")
    assert own_address(on_two) == "10.0.0.7"
