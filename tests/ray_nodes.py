"""A Ray cluster of several nodes on this machine, for tests: a head without cores, where a run may start, and nodes
with a core each, and as many GPUs as Ray is told. Says its address, then adds a node for each line it reads, and ends
with its input.

To be run with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, by which all of it is on 127.0.0.1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


def main(folder: str, nodes: int, gpus: int) -> None:
    # Ray notes an address there and does not make the folder.
    Path("/tmp/ray").mkdir(exist_ok=True)
    given: dict[str, Any] = {"node_ip_address": "127.0.0.1", "temp_dir": folder, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**given, "num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(**given, num_cpus=1, num_gpus=gpus)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.add_node(**given, num_cpus=1, num_gpus=gpus)
        print("added", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
