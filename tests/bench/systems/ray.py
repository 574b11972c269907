"""Ray Serve: the handle API that qserve mirrors, without Redis. Visited only where it is installed."""

import os
import shutil
import tempfile
from typing import Any

# Ray's own throughput settings, read when ray.serve is imported; a handle then serves one event loop and no threads.
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")

import ray
from ray import serve

from tests.bench.systems.system import System


class _Echo:
    async def __call__(self, argument: object) -> object:
        return argument


class Ray(System):
    """A handle in the driver, one replica; Ray starts its own processes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._handle: Any = None
        # Short: Ray's sockets lie deep below it, and a socket's path has at most 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="ray-")

    def commands(self) -> list[list[str]]:
        """None: `ray.init` starts all of them, as children."""
        return []

    async def open(self) -> None:
        """Nothing yet: starting the cluster is part of the cold start."""

    async def deploy(self) -> None:
        """Start Ray and Serve, and run the echo."""
        own = {"_node_ip_address": "127.0.0.1", "_temp_dir": self._folder}
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **own)
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})(_Echo)
        self._handle = serve.run(deployment.bind(), name="bench", route_prefix=None)

    async def call(self, argument: object) -> object:
        """The handle, awaited."""
        reply: object = await self._handle.remote(argument)
        return reply

    async def submit(self, count: int) -> None:
        """Never asked: without Redis there is no memory to weigh."""

    async def close(self) -> None:
        """Stop the cluster, Serve with it."""
        ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
