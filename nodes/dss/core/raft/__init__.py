"""The Raft core: one group's consensus as a pure state machine (see raft.py for the contract)."""
