"""`python -m qserve.node`: the worker with its defaults, for the embedded cluster. People use `qserve worker`."""

from qserve.config import Settings
from qserve.node.door import run_worker

if __name__ == "__main__":
    raise SystemExit(run_worker(Settings.from_env()))
