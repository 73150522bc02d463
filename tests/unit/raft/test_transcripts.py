"""Each transcript still reads as it is written. To write them anew after a wanted change, look at
the difference that `DSS_WRITE_TRANSCRIPTS=1 pytest tests/unit/raft/test_transcripts.py` makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transcript import blocks, replay

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript__replays_word_for_word(path: Path):
    now = replay(path)
    if os.environ.get("DSS_WRITE_TRANSCRIPTS"):
        path.write_text(now)
    assert now == path.read_text()


def test_transcripts__cover_the_protocol():
    assert {path.stem for path in TRANSCRIPTS} >= {
        "election", "election_split", "log_repair", "membership", "lost_disk", "replication",
        "snapshot", "transfer",
    }  # fmt: skip
    for path in TRANSCRIPTS:
        assert any(len(output) > 1 for _, _, output in blocks(path.read_text()))
