"""Tell Ray that this node is about to go: `python -m pipelines.leave --seconds 90`.

Run before a pod is stopped (its preStop hook). Ray then gives it no further work, and training
writes a checkpoint, as after any notice of preemption. Ends when the node is idle and gone, or
after the seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2


def leave(seconds: int) -> bool:
    """Drain the node of this machine's raylet; whether Ray took the notice."""
    # Not long for the head of a cluster that is going; the name is Ray's.
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"  # noqa: SIM112
    ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    ray.shutdown()  # a driver would keep its node from being idle
    gcs = GcsClient(address=address)
    deadline = time.time() + seconds
    reasons: Any = autoscaler_pb2
    preemption = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    taken, reason = gcs.drain_node(node, preemption, "the pod is stopped", int(deadline * 1000))
    if not taken:
        print(f"Ray does not let this node go: {reason}")
        return False
    while time.time() < deadline and _is_alive(gcs, node):
        time.sleep(1)
    return True


def _is_alive(gcs: GcsClient, node: str) -> bool:
    try:
        found = gcs.get_all_node_info(timeout=5)
    except Exception:  # a head that is away must not keep the pod
        return False
    state = {key.hex(): info.state for key, info in found.items()}
    return state.get(node) == 0  # GcsNodeInfo.ALIVE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=90)
    raise SystemExit(0 if leave(parser.parse_args().seconds) else 1)
