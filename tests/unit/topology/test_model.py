"""The model: defaults, validation, names and ports; the local rendering."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dss.base.errors import ConfigProblem
from dss.topology.config import load_node_config
from dss.topology.model import (
    CacheSpec,
    DSSCluster,
    ElectionTimeout,
    LockSpec,
    QueueSpec,
    cluster_of,
    validate,
)
from dss.topology.render_local import render_local


def test_default_cluster__eleven_services_on_the_contracts_ports() -> None:
    cluster = DSSCluster()
    assert validate(cluster) == []
    assert cluster.names() == (
        "lock-1", "lock-2", "lock-3", "queue-1", "queue-2", "queue-3", "cache-1", "cache-2",
        "redis", "prometheus", "grafana",
    )  # fmt: skip
    assert [m.http_port() for m in cluster.members()] == [
        8001, 8002, 8003, 8011, 8012, 8013, 8021, 8022,
    ]  # fmt: skip
    assert [m.peer_port() for m in cluster.members()][:4] == [9001, 9002, 9003, 9011]


BAD_MODELS = [
    (DSSCluster(lock=LockSpec(replicas=4)),
     "lock.replicas: expected an odd number from 1 to 9, found 4"),
    (DSSCluster(queue=QueueSpec(replicas=0, replication_factor=1)),
     "queue.replicas: expected 1 to 9, found 0"),
    (DSSCluster(cache=CacheSpec(replicas=10)), "cache.replicas: expected 1 to 9, found 10"),
    (DSSCluster(queue=QueueSpec(replicas=1)),
     "queue.replicationFactor: expected 1, 3 or 5, at most queue.replicas, 1, found 3"),
    (DSSCluster(queue=QueueSpec(partitions=257)), "queue.partitions: expected 1 to 256, found 257"),
    (DSSCluster(lock=LockSpec(heartbeat_ms=150)),
     "lock.electionTimeoutMs.min: expected more than twice heartbeatMs, 150, found 300"),
    (DSSCluster(lock=LockSpec(election_timeout_ms=ElectionTimeout(300, 400))),
     "lock.electionTimeoutMs.max: expected at least 1.5 times min, 300, found 400"),
    (DSSCluster(cache=CacheSpec(capacity_mib=0)),
     "cache.capacityMiB: expected at least 1, found 0"),
    (DSSCluster(cache=CacheSpec(lease_ms=1)), "cache.leaseMs: expected at least 100, found 1"),
]  # fmt: skip


@pytest.mark.parametrize(("cluster", "fault"), BAD_MODELS)
def test_bad_model__one_fault_and_refused(cluster: DSSCluster, fault: str) -> None:
    assert fault in validate(cluster)
    with pytest.raises(ConfigProblem):
        render_local(cluster, Path("/tmp/x"))


def test_model_as_a_resource__camel_case_and_unknown_fields_refused() -> None:
    spec = msgspec.json.decode(
        b'{"lock": {"electionTimeoutMs": {"min": 400}}, "cache": {"capacityMiB": 9}}',
        type=DSSCluster,
    )
    assert (spec.lock.election_timeout_ms.min, spec.cache.capacity_mib) == (400, 9)
    with pytest.raises(msgspec.ValidationError, match="replica"):
        msgspec.json.decode(b'{"lock": {"replica": 3}}', type=DSSCluster)


def test_local_rendering__every_environment_loads_as_its_node(tmp_path: Path) -> None:
    cluster = cluster_of(lock=5, queue=2, cache=1)
    nodes = render_local(cluster, tmp_path, base_port=18_000)
    assert [node.id for node in nodes] == [member.id for member in cluster.members()]
    for node in nodes:
        config = load_node_config(node.env)
        assert (config.node_id, config.role) == (node.id, node.role)
        assert (config.me.port, config.me.peer_port) == node.ports
        assert node.url == f"http://127.0.0.1:{node.port}"
        assert config.data_dir == str(tmp_path / node.id)
        assert config.replication_factor == 1
    assert len({port for node in nodes for port in node.ports}) == 2 * len(nodes)
    assert load_node_config(nodes[-1].env).memory_url == f"sqlite:///{tmp_path}/memory.db"


def test_base_port_without_room_above__refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match="base port: expected 1 to 64506, found 65000"):
        render_local(DSSCluster(), tmp_path, base_port=65_000)
