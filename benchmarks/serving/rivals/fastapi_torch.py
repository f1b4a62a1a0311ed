"""FastAPI as in most first versions: a pydantic model, PyTorch, one request at a time with its own tolerance."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.rivals.lockstep import Lockstep


class Request(BaseModel):
    """The body of a request."""

    inputs: list[list[list[list[float]]]]
    tolerance: float


network = Lockstep(sys.argv[1])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> dict[str, list[dict[str, object]]]:
    """Compute in the event loop, not in threads, which would compete for the one core."""
    return {"predictions": network([request.model_dump()])}


uvicorn.run(app, port=int(sys.argv[2]), access_log=False)
