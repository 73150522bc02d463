"""The cache on real nodes: the MESI states of a line as both nodes see it."""

from __future__ import annotations

from typing import Any

from cluster_process import Cluster, request


def put(url: str, key: str, value: bytes) -> None:
    reply = request("PUT", f"{url}/v1/cache/{key}", raw=value)
    assert reply.status < 300, reply


def get(url: str, key: str) -> bytes:
    reply = request("GET", f"{url}/v1/cache/{key}")
    assert reply.status == 200, reply
    return bytes(reply.body)


def state(url: str, key: str) -> Any:
    reply = request("GET", f"{url}/v1/cache/{key}/line")
    assert reply.status == 200, reply
    return reply.body["state"]


def test_write_here__modified_here_and_invalid_there(cluster: Cluster) -> None:
    one, two = cluster.urls("cache")
    put(one, "mesi-a", b"1")
    assert (state(one, "mesi-a"), state(two, "mesi-a")) == ("M", "I")
    assert get(two, "mesi-a") == b"1"
    assert (state(one, "mesi-a"), state(two, "mesi-a")) == ("S", "S")
    put(two, "mesi-a", b"2")
    assert (state(one, "mesi-a"), state(two, "mesi-a")) == ("I", "M")
    assert get(one, "mesi-a") == b"2"


def test_read_after_write_on_the_other_node__never_stale(cluster: Cluster) -> None:
    one, two = cluster.urls("cache")
    for number in range(100):
        writer, reader = (one, two) if number % 2 else (two, one)
        put(writer, "mesi-b", str(number).encode())
        assert get(reader, "mesi-b") == str(number).encode()


def test_deleted__gone_on_both(cluster: Cluster) -> None:
    one, two = cluster.urls("cache")
    put(one, "mesi-c", b"1")
    assert get(two, "mesi-c") == b"1"
    assert request("DELETE", f"{one}/v1/cache/mesi-c").status < 300
    assert request("GET", f"{two}/v1/cache/mesi-c").status == 404
    assert request("GET", f"{one}/v1/cache/mesi-c").status == 404
