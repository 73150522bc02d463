"""The cache on real nodes: the MESI states of a line as both nodes see it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from cluster_process import Cluster, request, until


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


def test_home_that_does_not_answer__refused_with_503_not_a_hang(cluster: Cluster) -> None:
    one = cluster.url("cache-1")
    key = next(
        key
        for key in (f"mesi-home-{n}" for n in range(100))
        if request("GET", f"{one}/v1/cache/{key}/line").body["home"] == "cache-2"
    )
    stopped = cluster.pid("cache-2")
    os.kill(stopped, signal.SIGSTOP)
    try:
        began = time.monotonic()
        reply = request("GET", f"{one}/v1/cache/{key}")
        assert reply.status == 503, reply
        # One lease (1 s); not the 5 s that a write waits, nor the link's own time-out.
        assert time.monotonic() - began < 3
        began = time.monotonic()
        assert request("GET", f"{one}/v1/cache/{key}").status == 503
        assert time.monotonic() - began < 1
    finally:
        os.kill(stopped, signal.SIGCONT)
    answered = until(lambda: request("GET", f"{one}/v1/cache/{key}").status == 404, "an answer")
    assert answered
