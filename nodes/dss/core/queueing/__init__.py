"""Durable at-least-once queues: the state machine of one partition."""
