"""Deploys `workers.compose` to a cluster that runs elsewhere. This process ends, the application stays.

To run it, on any host that reaches the cluster's Redis:

    QSERVE_REDIS_URL=redis://localhost:6379/0 python -m workers.deploy

Once more changes nothing while the code is the same. `qserve delete compose` takes the application down.
"""

import os

import qserve as serve
from workers.compose import app

if __name__ == "__main__":
    if not os.environ.get("QSERVE_REDIS_URL"):
        raise SystemExit("Set QSERVE_REDIS_URL: an embedded cluster would end with this process.")
    serve.run(app, name="compose")
    print("Application 'compose' is running. Any process calls it by serve.get_app_handle('compose').")
