"""What `dss up` prints, on a terminal and into a file."""

from __future__ import annotations

import io

from dss.local.readiness import NodeView, leader_line, partitions_led
from dss.local.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_file__no_colours_and_no_progress() -> None:
    out = io.StringIO()
    screen = Screen(out, {})
    screen.progress("waiting")
    screen.good("ready")
    screen.table(("node", "state"), [("lock-1", "leader"), ("lock-12", "follower")])
    assert out.getvalue() == (
        "✔ ready\n  node      state\n  lock-1    leader\n  lock-12   follower\n"
    )


def test_terminal__progress_is_replaced_by_the_next_line() -> None:
    out = Terminal()
    screen = Screen(out, {})
    screen.progress("waiting")
    screen.good("ready")
    assert out.getvalue() == "\r\x1b[K  waiting\r\x1b[K\x1b[32m✔\x1b[0m ready\n"


def test_no_color__a_terminal_without_colours() -> None:
    out = Terminal()
    Screen(out, {"NO_COLOR": "1"}).bad("down")
    assert out.getvalue() == "✘ down\n"


def test_encoding_without_check_marks__plain_words() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Screen(out, {}).good("ready")
    out.seek(0)
    assert out.read() == "ok ready\n"


def _lock(name: str, role: str, term: int) -> NodeView:
    groups = ({"group_id": 0, "role": "follower", "term": 9},
              {"group_id": 1, "role": role, "term": term})  # fmt: skip
    return NodeView(name, "lock", "http://x", "", groups)


def test_two_leaders_seen__the_higher_term_counts() -> None:
    nodes = [_lock("lock-1", "leader", 3), _lock("lock-2", "leader", 4)]
    assert leader_line(nodes) == "leader lock-2, term 4"
    assert leader_line([_lock("lock-1", "follower", 3)]) is None
    assert nodes[0].state() == "leader"


def test_queue_state__counts_what_it_leads() -> None:
    groups = tuple({"group_id": 16 + n, "role": r} for n, r in enumerate(("leader", "follower")))
    node = NodeView("queue-1", "queue", "http://x", "", groups)
    assert node.state() == "leads 1 of 2 partitions"
    assert partitions_led([node, node]) == 1
