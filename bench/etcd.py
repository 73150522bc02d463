"""The competitor: a local three-node etcd with its default settings (fsync on), and v3lock.

The few protobuf messages are encoded by hand after etcd's published API: tag = field << 3 | type,
type 0 is a varint, type 2 is length-delimited. Nothing else of protobuf is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Its fork handlers only complain of the processes that we start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc.aio  # type: ignore[import-untyped]

from bench.processes import Started, free_ports, wait_ready

LEASE_TTL_S = 600


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes_field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def parse(data: bytes) -> dict[int, int | bytes]:
    """Field number -> its last value (varints and length-delimited fields only)."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            fields[tag >> 3], at = _read_varint(data, at)
        elif tag & 7 == 2:
            size, at = _read_varint(data, at)
            fields[tag >> 3] = data[at : at + size]
            at += size
        else:
            raise ValueError(f"unexpected wire type {tag & 7}")
    return fields


def _same(data: bytes) -> bytes:
    return data


class Etcd:
    """Three etcd processes on 127.0.0.1 with their data under `folder`."""

    def __init__(self, binary: str, folder: Path) -> None:
        ports = free_ports(6)
        self._clients = ports[:3]
        self._folder = folder
        peers = ports[3:]
        cluster = ",".join(f"e{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        self._commands = []
        for i in range(3):
            client = f"http://127.0.0.1:{self._clients[i]}"
            peer = f"http://127.0.0.1:{peers[i]}"
            self._commands.append(
                [
                    binary, "--name", f"e{i}", "--data-dir", str(folder / f"e{i}"),
                    "--listen-client-urls", client, "--advertise-client-urls", client,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", cluster, "--log-level", "error",
                ]
            )  # fmt: skip
        self.nodes = [self._start(i) for i in range(3)]

    def _start(self, i: int) -> Started:
        return Started(self._commands[i], self._folder / f"e{i}.log")

    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self._clients]

    def kill(self, address: str) -> int:
        """kill -9 of the node at `address`; its number, for `restart`."""
        i = self.addresses().index(address)
        self.nodes[i].kill()
        return i

    async def restart(self, i: int) -> None:
        self.nodes[i] = self._start(i)
        await wait_ready([f"http://{self.addresses()[i]}/health"], self.nodes[i])

    async def ready(self) -> None:
        for port, node in zip(self._clients, self.nodes, strict=True):
            await wait_ready([f"http://127.0.0.1:{port}/health"], node)

    async def leader(self) -> str:
        """The leader's client address: the DSS client goes to its leader too."""
        for port, node in zip(self._clients, self.nodes, strict=True):
            if node.process.poll() is not None:
                continue
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                status = channel.unary_unary(
                    "/etcdserverpb.Maintenance/Status",
                    request_serializer=_same,
                    response_deserializer=parse,
                )
                answer = await status(b"")
                header = answer[1]
                assert isinstance(header, bytes)
                if parse(header)[2] == answer[4]:
                    return f"127.0.0.1:{port}"
        raise RuntimeError("etcd has no leader")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


class EtcdLocks:
    """v3lock over one channel; each worker has a lease of its own, made once."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        make: Callable[[str], grpc.aio.UnaryUnaryMultiCallable] = lambda path: (  # noqa: E731
            self._channel.unary_unary(path, request_serializer=_same, response_deserializer=parse)
        )
        self._grant = make("/etcdserverpb.Lease/LeaseGrant")
        self._lock = make("/v3lockpb.Lock/Lock")
        self._unlock = make("/v3lockpb.Lock/Unlock")
        self._leases: dict[int, int] = {}

    async def lease(self, worker: int) -> int:
        """The worker's lease."""
        lease = self._leases.get(worker)
        if lease is None:
            answer = await self._grant(_int_field(1, LEASE_TTL_S))
            granted = answer[2]
            assert isinstance(granted, int)
            lease = self._leases[worker] = granted
        return lease

    async def acquire(self, name: str, lease: int) -> bytes:
        """Wait for the lock; the key that releases it."""
        answer = await self._lock(_bytes_field(1, name.encode()) + _int_field(2, lease))
        key = answer[2]
        assert isinstance(key, bytes)
        return key

    async def cycle(self, worker: int, n: int) -> int:
        key = await self.acquire(f"bench/{worker}/{n}", await self.lease(worker))
        await self._unlock(_bytes_field(1, key))
        return 1

    async def hand_off(self, worker: int, n: int) -> int:
        """One lock for all workers."""
        key = await self.acquire("bench/one", await self.lease(worker))
        await self._unlock(_bytes_field(1, key))
        return 1

    async def close(self) -> None:
        await self._channel.close()
