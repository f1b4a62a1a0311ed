"""``python -m app``: serve a model store; ``predict``: send images to such a server; ``alias``: name a version."""

import sys

if __name__ == "__main__":  # a command imports only what it needs
    match sys.argv[1:]:
        case ["predict", *arguments]:
            from app.cli import predict

            predict.program(args=arguments, prog_name="python -m app predict")
        case ["alias", *arguments]:
            from app.cli import alias

            alias.program(args=arguments, prog_name="python -m app alias")
        case arguments:
            from app.cli import serve

            serve.main("python -m app", arguments)
