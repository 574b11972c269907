"""A web service that makes calls: it runs anywhere, holds a handle, and hosts no model.

To run it, beside a cluster on which `python -m workers.deploy` has left `workers.compose`:

    QSERVE_REDIS_URL=redis://localhost:6379/0 uvicorn workers.web:app --port 8000
    curl localhost:8000/sum/40                    waits for the answer
    curl -X POST localhost:8000/calls/40          does not wait: answers 202 and a request_id
    curl localhost:8000/calls/REQUEST_ID          how it stands, and the result when there is one

Needs `pip install 'qserve[demo]'`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request

import qserve as serve


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    """Find the application once, at the start. Fails when it is not deployed."""
    web.state.compose = serve.get_app_handle("compose")
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "ok"}


@app.get("/sum/{start}")
async def add_up(start: int, request: Request) -> dict[str, int]:
    """Make a call and await it; other requests are served meanwhile."""
    return {"result": await request.app.state.compose.remote(start)}


@app.post("/calls/{start}", status_code=202)
async def submit(start: int, request: Request) -> dict[str, str]:
    """Make a call and leave it: it runs, and any process can fetch its result for an hour."""
    return {"request_id": request.app.state.compose.remote(start).request_id}


@app.get("/calls/{request_id}")
async def fetch(request_id: str) -> dict[str, Any]:
    """Where a call stands, with its result once it is done. 404 for an id that nobody knows (any more)."""
    try:
        response = serve.get_response(request_id)
    except ValueError as error:
        raise HTTPException(404, str(error)) from error
    status = await response.status_async()
    if status == "UNKNOWN":
        raise HTTPException(404, f"Nobody knows the call {request_id!r}, or its result has expired.")
    return {"status": status, "result": await response if status == "DONE" else None}
