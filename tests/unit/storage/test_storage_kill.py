"""The WAL under a real process that is killed, and under real threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from wal_model import ABC, entry

from dss.storage.files import OsFiles
from dss.storage.wal import Wal

SEGMENT_BYTES = 64 * 1024

CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from wal_model import ABC, entry
from dss.storage.files import OsFiles
from dss.storage.wal import Wal
wal, groups = Wal.open(OsFiles(sys.argv[1]), segment_bytes=65536)
if not groups:
    wal.create_group(1, ABC)
    index = 0
else:
    held = groups[1].entries
    index = held[-1].index if held else groups[1].snapshot_index
while True:
    index += 1
    wal.append(1, [entry(index, size=900)])
    if index % 100 == 0:
        wal.snapshot(1, index - 10, 1, 1, ABC)
    wal.write()
    wal.sync()
    print(index, flush=True)
    if index % 50 == 0:
        wal.reclaim()
"""


def test_killed_again_and_again__every_printed_entry_is_there(tmp_path: Path) -> None:
    acknowledged = 0
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            first = int(child.stdout.readline())
            assert first > acknowledged
            time.sleep(0.1 + 0.05 * life)
            child.kill()
            printed = child.stdout.read().split(b"\n")[:-1]
            acknowledged = int(printed[-1]) if printed else first
        wal, groups = Wal.open(OsFiles(tmp_path), segment_bytes=SEGMENT_BYTES)
        held = groups[1].entries
        last = groups[1].snapshot_index + len(held)
        assert last >= acknowledged
        assert held == [
            entry(index, size=900) for index in range(groups[1].snapshot_index + 1, last + 1)
        ]
        wal.close()
    assert acknowledged > 4


def test_prepare_and_sync_in_threads__nothing_is_lost(tmp_path: Path) -> None:
    wal, _ = Wal.open(OsFiles(tmp_path), segment_bytes=SEGMENT_BYTES)
    wal.create_group(1, ABC)
    stop = threading.Event()

    def keep_prepared() -> None:
        while not stop.wait(0.001):
            wal.prepare()

    preparer = threading.Thread(target=keep_prepared)
    preparer.start()
    try:
        for index in range(1, 301):
            wal.append(1, [entry(index, size=1000)])
            wal.write()
            syncer = threading.Thread(target=wal.sync)
            syncer.start()
            if index % 50 == 0:
                wal.snapshot(1, index - 5, 1, 1, ABC)  # buffering beside the sync is allowed
            syncer.join()
            if index % 50 == 0:
                wal.reclaim()
    finally:
        stop.set()
        preparer.join()
    wal.write()
    wal.sync()
    wal.close()
    _, groups = Wal.open(OsFiles(tmp_path), segment_bytes=SEGMENT_BYTES)
    assert groups[1].snapshot_index == 295
    assert groups[1].entries == [entry(index, size=1000) for index in range(296, 301)]
