"""The pure cores: deterministic state machines fed with events, time passed in as an argument.

What must not live here: asyncio, time, random, os, socket, logging, iteration over sets, `hash()`
(tests/unit/test_core_purity.py reads the syntax trees and refuses them).
"""
