"""Consistent hashing and the placement of partitions. Pure functions of the node ids."""
