"""`python -m qserve.node`: the worker with its defaults, for the embedded cluster. People use `qserve worker`."""

from qserve import logs
from qserve.config import Settings
from qserve.node.door import run_worker
from qserve.node.resources import describe, offered

# It shares its CPUs with the script that started it, and with nobody else: any graph shall run on a laptop.
_LEAST_CPUS = 1000.0

if __name__ == "__main__":
    settings = Settings.from_env()
    logs.configure(settings)  # what is found out about this host may be worth a line
    resources = offered()
    resources["num_cpus"] = max(_LEAST_CPUS, resources["num_cpus"])
    raise SystemExit(run_worker(settings, describe(resources=resources)))
