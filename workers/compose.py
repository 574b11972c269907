"""Two deployments composed: `Caller` holds a handle of `Adder` and passes one call's response straight to the next.

To run it:

    python -m workers.compose         serves it on an embedded cluster, adds 1 twice, and ends
    qserve run workers.compose:app    serves it until Ctrl-C
    python -m workers.deploy          leaves it running on the cluster that QSERVE_REDIS_URL names
"""

import qserve as serve
from qserve.handle import DeploymentHandle


@serve.deployment
class Adder:
    """Adds a fixed increment."""

    def __init__(self, increment: int) -> None:
        self._increment = increment

    def add(self, number: int) -> int:
        """A plain method: it runs in a thread, so it may block or compute."""
        return number + self._increment


@serve.deployment
class Caller:
    """The outermost deployment: its handle is what `serve.run` returns."""

    def __init__(self, adder: DeploymentHandle[Adder]) -> None:
        self._adder = adder

    async def __call__(self, start: int) -> int:
        # The inner response is not awaited here: its value goes from replica to replica.
        total: int = await self._adder.add.remote(self._adder.add.remote(start))
        return total


app = Caller.bind(Adder.bind(1))

if __name__ == "__main__":
    handle = serve.run(app, name="compose")
    print(f"0 + 1 + 1 = {handle.remote(0).result()}")
    serve.delete("compose")
