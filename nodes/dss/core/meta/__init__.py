"""Cluster metadata, group 0: registered nodes, the partition table, the queue registry."""
