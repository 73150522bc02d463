"""The operator's rights are the least: everything works with them, and each of them is used."""

from __future__ import annotations

from typing import Any

from operator_lab import Lab, run

from dss.topology.kube.rbac import GRANTS

WATCHES = {("watch", "dssclusters"), ("list", "dssclusters"), ("watch", "statefulsets")}
"""kopf's own (test_http.py runs it); its list of StatefulSets is counted as the operator's."""
RIGHTS = {(verb, grant.resource) for grant in GRANTS for verb in grant.verbs}
OPTIONAL = {(verb, grant.resource) for grant in GRANTS if grant.optional for verb in grant.verbs}


async def _life(lab: Lab) -> None:
    """All that a cluster can make its operator do."""
    await lab.leadership.try_once()
    await lab.settle()
    await lab.leadership.try_once()
    # Drift, also in what can only be made anew.
    lab.api.edit("services", "demo-lock", lambda obj: obj["spec"]["ports"][0].update(port=1))
    lab.api.edit("configmaps", "demo-peers", lambda obj: obj["data"].update(extra="x"))
    lab.api.remove("secrets", "demo-auth")
    await lab.settle()
    # Parts switched off.
    redis = {"enabled": False, "externalUrl": "redis://elsewhere"}
    parts: dict[str, Any] = {
        "monitoring": {"prometheus": {"enabled": False}, "grafana": {"enabled": False}},
        "ingress": {"enabled": False}, "auth": {"enabled": False}, "redis": redis,
    }  # fmt: skip
    lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(parts))
    await lab.settle()
    await _split_vote(lab)
    await lab.leadership.try_once()


async def _split_vote(lab: Lab) -> None:
    """Two restarts: of a ready pod and of one that is not."""
    for ready in (True, False):
        lab.nodes.leader, lab.nodes.candidates = None, ("lock-1", "lock-2", "lock-3")
        for _ in range(40):
            lab.nodes.term += 2
            await lab.sample()
            await lab.tick(0)
            if lab.nodes.posts and not ready:
                lab.api.run_sets(ready=lambda pod: not pod.startswith("demo-lock"))
                await lab.tick(0)
            if lab.status["remediation"]["restarts"] > (not ready):
                break
        lab.nodes.leader = "lock-1"
        lab.api.run_sets()
        await lab.sample()
        await lab.settle()
        await lab.sample(after_s=7_200)


def test_whole_life_under_the_rights_given__nothing_is_refused_and_each_is_used() -> None:
    async def scenario() -> None:
        lab = Lab(ingress={"enabled": True, "host": "dss.local"})
        lab.api.rights = set(RIGHTS)
        await _life(lab)
        assert lab.condition("Ready") == ("True", "Serving")
        assert lab.condition("Degraded") == ("False", "AsDeclared")
        assert lab.api.used <= RIGHTS
        assert RIGHTS - WATCHES - OPTIONAL - lab.api.used == set()

    run(scenario())
