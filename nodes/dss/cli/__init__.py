"""The `dss` command: parse, ask a node over HTTP, print. No decisions about locks, queues or keys.

Exit codes: 0 done, 1 failed, 2 wrong usage, 69 unreachable, 75 try again (no quorum, lock busy,
lock lost), 78 bad configuration. Results on standard output, errors as one line on standard error.
Every import beyond the standard library happens in the subcommand that needs it: `dss node` must
not pay for tables.
"""
