"""`python -m qserve.controller`: as the embedded cluster starts it. People use `qserve autoscaler`."""

from qserve.config import Settings
from qserve.controller.door import run_autoscaler

if __name__ == "__main__":
    raise SystemExit(run_autoscaler(Settings.from_env()))
