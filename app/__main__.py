"""``python -m app``: serve a model store; ``python -m app predict``: send images to such a server."""

import sys

from app.cli import predict, serve

if __name__ == "__main__":
    if sys.argv[1:2] == ["predict"]:
        predict.program(args=sys.argv[2:], prog_name="python -m app predict")
    serve.main()
