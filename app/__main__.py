"""``python -m app``: serve a model store; ``predict``: send images to such a server; ``alias``: name a version."""

import sys

from app.cli import alias, predict, serve

if __name__ == "__main__":
    if sys.argv[1:2] == ["predict"]:
        predict.program(args=sys.argv[2:], prog_name="python -m app predict")
    if sys.argv[1:2] == ["alias"]:
        alias.program(args=sys.argv[2:], prog_name="python -m app alias")
    serve.main("python -m app", sys.argv[1:])
