"""The smallest script: everything embedded. The bench takes the time until its first line."""

import qserve as serve


class Echo:
    """The work: none."""

    async def __call__(self, argument: str) -> str:
        """Answer with what came."""
        return argument


if __name__ == "__main__":
    print(serve.run(serve.deployment(Echo).bind()).remote("first reply").result(timeout_s=60), flush=True)
    serve.shutdown()
