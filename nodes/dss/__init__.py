"""DSS: locks, queues and a cache that stay correct while machines fail.

The layers, top to bottom: cli > local > node > api > drivers > transport | storage | memory >
topology > observe > core > base (import-linter holds them; see docs/architecture.md).
"""

__version__ = "0.1.0"
