"""The supervisor against small stand-in nodes: real processes, no DSS inside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dss.local import supervisor
from dss.local.supervisor import NodeCommand, Supervisor, backoff_s, describe_exit, last_line

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
IGNORES_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(60)"
)
REFUSES = "import sys; print('starting'); print('RAFT_PEERS is empty'); sys.exit(78)"
CRASHES = "import sys; print('the disk is on fire'); sys.exit(3)"


def node(tmp_path: Path, code: str, name: str = "lock-1") -> NodeCommand:
    argv = [sys.executable, "-S", "-c", code]
    return NodeCommand(name, argv, dict(os.environ), tmp_path / f"{name}.log")


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_node_killed__is_started_again_and_said_so(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> None:
        boss = Supervisor([node(tmp_path, SLEEPS)], said.append)
        boss.start()
        lock = boss.nodes["lock-1"]
        await until(lambda: last_line(lock.command.log) == "up")
        first = lock.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: lock.starts == 2 and lock.pid not in (0, first))
        await boss.stop(grace_s=5)

    asyncio.run(scenario())
    assert said == ["lock-1 was ended by SIGKILL; starting it again in 0.5 s. Last log line: up"]


def test_stop__ends_every_node_with_sigterm(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> tuple[list[int], list[int | None]]:
        names = ("lock-1", "lock-2", "queue-1")
        boss = Supervisor([node(tmp_path, SLEEPS, name) for name in names], said.append)
        boss.start()
        await until(lambda: all(last_line(n.command.log) for n in boss.nodes.values()))
        pids = [n.pid for n in boss.nodes.values()]
        await boss.stop(grace_s=5)
        return pids, [n.exit_code for n in boss.nodes.values()]

    pids, codes = asyncio.run(scenario())
    assert codes == [-signal.SIGTERM] * 3
    assert not any(alive(pid) for pid in pids)
    assert said == []


def test_node_that_ignores_sigterm__is_killed_after_the_grace(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> int | None:
        boss = Supervisor([node(tmp_path, IGNORES_TERM)], said.append)
        boss.start()
        lock = boss.nodes["lock-1"]
        await until(lambda: last_line(lock.command.log) == "up")
        await boss.stop(grace_s=0.2)
        return lock.exit_code

    assert asyncio.run(scenario()) == -signal.SIGKILL
    assert said == ["lock-1 did not stop within 0.2 s: killed"]


def test_bad_configuration__is_not_started_again(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> tuple[int, list[str]]:
        boss = Supervisor([node(tmp_path, REFUSES)], said.append)
        boss.start()
        await until(lambda: bool(boss.given_up()))
        await asyncio.sleep(backoff_s(1) + 0.1)
        await boss.stop()
        return boss.nodes["lock-1"].starts, [n.gave_up for n in boss.given_up()]

    starts, reasons = asyncio.run(scenario())
    assert starts == 1
    assert reasons == ["RAFT_PEERS is empty"]
    assert said == ["lock-1 refused its configuration: RAFT_PEERS is empty"]


def test_node_that_keeps_dying__waits_longer_each_time(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> None:
        boss = Supervisor([node(tmp_path, CRASHES)], said.append)
        boss.start()
        await until(lambda: len(said) == 2)
        began = time.monotonic()
        await boss.stop()
        assert time.monotonic() - began < 0.5, "stop must not wait for the back-off"

    asyncio.run(scenario())
    again = "lock-1 ended with exit code 3; starting it again in {} s. Last log line: "
    assert said == [again.format(s) + "the disk is on fire" for s in ("0.5", "1")]


def test_program_missing__is_reported_like_a_death(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> None:
        command = NodeCommand("lock-1", ["/nonexistent/python"], {}, tmp_path / "lock-1.log")
        boss = Supervisor([command], said.append)
        boss.start()
        await until(lambda: bool(said))
        await boss.stop()

    asyncio.run(scenario())
    assert said[0].endswith("Last log line: /nonexistent/python: No such file or directory")


def test_supervisor_killed__its_nodes_end_too(tmp_path: Path) -> None:
    """kill -9 of the parent: the kernel must end the children."""
    parent = f"""
import asyncio, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_local_supervisor import SLEEPS, node, until
from dss.local.supervisor import Supervisor, last_line

async def main():
    boss = Supervisor([node(pathlib.Path({str(tmp_path)!r}), SLEEPS)], print)
    boss.start()
    await until(lambda: last_line(boss.nodes["lock-1"].command.log) == "up")
    print(boss.nodes["lock-1"].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as boss:
        assert boss.stdout is not None
        child = int(boss.stdout.readline())
        assert alive(child)
        boss.kill()
        boss.wait()
    asyncio.run(until(lambda: not alive(child)))


def test_backoff__doubles_up_to_its_maximum() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4, 5, 6, 7, 8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff_s(10_000) == 30


def test_large_log__is_put_aside_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "lock-1.log"
    with open(log, "wb") as file:
        file.truncate(supervisor.limits.LOCAL_LOG_BYTES_MAX + 1)
    with supervisor.open_log(log) as file:
        file.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "lock-1.log.1").stat().st_size > supervisor.limits.LOCAL_LOG_BYTES_MAX


def test_describe_exit__names_signals() -> None:
    assert describe_exit(1) == "ended with exit code 1"
    assert describe_exit(-9) == "was ended by SIGKILL"
    assert describe_exit(-60) == "was ended by signal 60"
