"""The operator: makes a `DSSCluster` resource true and keeps it so.

What lives here: talking to the Kubernetes API, kopf, the loop of each cluster. What must not: what
objects a cluster is made of (dss.topology.kube), what a stuck election is (dss.remediation).
"""
