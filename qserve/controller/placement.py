"""Which node gets a replica. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from qserve.spec import Assignment, DeploymentSpec, NodeRecord


def place(spec: DeploymentSpec, nodes: Iterable[NodeRecord], assigned: Sequence[Assignment]) -> str | None:
    """The node for one more replica of `spec`; None when no node accepts it.

    Of those that accept it, the one with the fewest of it, then the emptiest.
    """
    of_all = Counter(a.node_id for a in assigned)
    of_it = Counter(a.node_id for a in assigned if (a.app, a.deployment) == (spec.app, spec.name))
    most = spec.config.max_replicas_per_node
    fits = [
        node
        for node in nodes
        if not node.draining and node.accepts(spec.app, spec.name) and (most is None or of_it[node.node_id] < most)
    ]
    if not fits:
        return None
    return min(fits, key=lambda node: (of_it[node.node_id], of_all[node.node_id], node.node_id)).node_id


def why_not(spec: DeploymentSpec, nodes: Sequence[NodeRecord]) -> str:
    """Why no node takes a replica of `spec`, for its status."""
    if not nodes:
        return "No worker has joined: start one with `qserve worker` on a host that reaches the same Redis."
    taking = [node for node in nodes if not node.draining]
    accepting = [node for node in taking if node.accepts(spec.app, spec.name)]
    if not accepting:
        draining = len(nodes) - len(taking)
        return f"None of {len(nodes)} workers takes it: {draining} drain, the others have --deployments lists."
    most = spec.config.max_replicas_per_node
    return f"All {len(accepting)} workers that take it have max_replicas_per_node={most} of it."
