"""The smallest application: it answers with what it was given.

To run it:

    python -m workers.echo                 serves it on an embedded cluster, calls it once, and ends
    qserve run workers.echo:app            serves it until Ctrl-C
    qserve call default.Echo '["hello"]'   calls it, on the cluster that QSERVE_REDIS_URL names
"""

from typing import Any

import qserve as serve


@serve.deployment
class Echo:
    """Returns its argument."""

    async def __call__(self, value: Any = None) -> Any:
        return value


app = Echo.bind()

if __name__ == "__main__":
    handle = serve.run(app, name="echo")
    print(handle.remote("hello").result())
    serve.delete("echo")
