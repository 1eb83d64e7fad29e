"""Nodes of `ray.cluster_utils` in a process of their own. Commands come on standard input, one a line; each is answered
by a line of JSON: `add {"num_cpus": 2, …}` by the cluster's address and the raylet's process, `remove N` by {}.

The end of the input ends all nodes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    cluster, nodes = Cluster(), list[Any]()
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        answer: dict[str, Any] = {}
        if verb == "add":
            nodes.append(cluster.add_node(**json.loads(rest)))
            raylet = nodes[-1].all_processes["raylet"][0].process
            answer = {"address": cluster.address, "raylet": raylet.pid}
        else:
            cluster.remove_node(nodes[int(rest)], allow_graceful=False)
        print(json.dumps(answer), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
