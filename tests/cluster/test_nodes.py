"""Several nodes of real Ray on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from streamcl.bench.shards import config
from streamcl.cluster.memory import Shards
from streamcl.cluster.trainer import Trainer


def placed(folder: Path) -> tuple[list[str], str]:
    """The nodes of four desks, on a cluster of three, and the driver's."""
    with tempfile.TemporaryDirectory(prefix="scl-") as short:
        os.environ["RAY_TMPDIR"] = short
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=4)
            ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
            settings, memory = config(folder, shards=1), Shards(str(folder), 0, run="x")
            desks = [Trainer(settings, memory, name=f"run-{number}").desk for number in range(4)]
            where = [desk.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for desk in desks]
            return ray.get(where), ray.get_runtime_context().get_node_id()
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.mark.slow
def test_the_desk_lives_on_the_drivers_node(apart: Callable[..., Any], tmp_path: Path) -> None:
    """An actor that takes nothing goes to any node; the run would end with that node."""
    where, here = apart(placed, tmp_path)
    assert where == [here] * 4
