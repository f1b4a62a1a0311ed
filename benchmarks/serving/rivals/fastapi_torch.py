"""FastAPI as most people begin: a pydantic model, PyTorch, one request at a time with its own tolerance."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.rivals.lockstep import Lockstep


class Question(BaseModel):
    """The body of a request."""

    inputs: list[list[list[list[float]]]]
    tolerance: float


network = Lockstep(sys.argv[1])
app = FastAPI()


@app.post("/predict")
async def predict(question: Question) -> dict[str, list[dict[str, object]]]:
    """In the event loop, not in threads: on one core these would take the computation from each other."""
    return {"predictions": network([question.model_dump()])}


uvicorn.run(app, port=int(sys.argv[2]), access_log=False)
