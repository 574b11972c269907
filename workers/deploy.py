"""Deploys `workers.compose` to a cluster that runs elsewhere, and leaves it there: this process ends, the application stays.

    QSERVE_REDIS_URL=redis://localhost:6379/0 python -m workers.deploy

Running it again changes nothing as long as the code is the same. `qserve delete compose` takes the application down.
"""

import qserve as serve
from workers.compose import app

if __name__ == "__main__":
    if not serve.status().nodes:
        print("No worker has joined yet: waiting for `qserve worker`.", flush=True)
    serve.run(app, name="compose")
    print("Application 'compose' is running. serve.get_app_handle('compose') calls it.")
