"""Split votes: what the members say -> what is wrong -> what to do. Pure: no clock, no I/O.

The operator and `dss doctor` share it. What must not live here: asking members, acting.
"""
