"""Split votes: what the members say -> what is wrong -> what to do. Pure: no clock, no I/O.

    window.add(parse_status(member, body, at_ms))            # or unanswered(member, at_ms, why)
    diagnoses = diagnose(window.samples(), members, policy, now_ms)
    action = decide(diagnoses, policy, record.history, busy, now)
    record = record.begin(action, now)                       # store it, then act, then:
    record = record.ended("done")

The operator and `dss doctor` share it. What must not live here: asking members, acting.
"""

from dss.remediation.decide import TOUCHING, cooldown_until, decide
from dss.remediation.diagnose import diagnose
from dss.remediation.model import (
    HISTORY_MAX,
    Action,
    Attempt,
    Diagnosis,
    GroupSample,
    Policy,
    Sample,
)
from dss.remediation.record import Record
from dss.remediation.samples import SampleWindow, parse_status, unanswered

__all__ = [
    "HISTORY_MAX",
    "TOUCHING",
    "Action",
    "Attempt",
    "Diagnosis",
    "GroupSample",
    "Policy",
    "Record",
    "Sample",
    "SampleWindow",
    "cooldown_until",
    "decide",
    "diagnose",
    "parse_status",
    "unanswered",
]
