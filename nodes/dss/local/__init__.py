"""`dss up`: the cluster as local processes, without Docker and without Redis.

| module | what |
|---|---|
| `up` | the command: data directory, processes, progress, table |
| `supervisor` | one process per node: start, restart with back-off, stop |
| `datadir` | what a data directory remembers, its secret, its lock |
| `ports` | is a port free, and if not, who has it |
| `readiness` | asks the nodes over HTTP how far they are |
| `terminal` | the foreground process group, so that Ctrl-C reaches `dss up` and not `make` |

What must not live here: anything a node does. Nodes are started as `python -m dss.cli.main node`.
"""
