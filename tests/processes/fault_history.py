"""What a lock's clients heard under faults, judged by the simulator's own specification.

Clients here never hold one lock twice, so there is no re-entrancy: a second grant is wrong.
What must not live here: how the answers were got; which answers are right (dss.testing.lockspec).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dss.testing import lockspec as spec
from dss.testing.linearize import Operation, is_linearizable

SEMAPHORE_LIMIT = 3
LOCK = spec.LockSpecification(reentrant=False)


def check(name: str, operations: Sequence[Operation]) -> None:
    """The history of one lock is linearizable, and the checker would notice a wrong one."""
    assert is_linearizable(LOCK, operations), f"{name} is not linearizable"
    first = min(operation.called for operation in operations)
    # Somebody who never gives it back.
    stranger = spec.AcquireOp("stranger", "stranger", "exclusive", spec.GRANTED, 1)
    before = Operation(first - 2, first - 1, stranger)
    assert not is_linearizable(LOCK, [before, *operations])


def tokens_increase(operations: Sequence[Operation]) -> bool:
    """Over all grants that were heard of: each is newer than all that ended before it was asked.

    Told by times alone, without a search: a second opinion.
    """
    grants = [
        operation
        for operation in operations
        if isinstance(operation.what, spec.AcquireOp) and operation.what.token
    ]
    tokens = [grant.what.token for grant in grants]
    if len(set(tokens)) != len(tokens):
        return False
    newest, ended = 0, sorted(grants, key=lambda grant: grant.returned)
    index = 0
    for grant in sorted(grants, key=lambda grant: grant.called):
        while index < len(ended) and ended[index].returned < grant.called:
            newest = max(newest, ended[index].what.token)
            index += 1
        if grant.what.token <= newest:
            return False
    return True


def unknown(operations: Sequence[Operation]) -> int:
    return sum(math.isinf(operation.returned) for operation in operations)
