"""``jfb``: one command for what ``python -m app`` and ``python -m training`` do; it imports either only when it is asked for."""

import sys
from difflib import get_close_matches
from importlib.metadata import version

SERVING = {
    "serve": "Serve a model store over HTTP.",
    "predict": "Send images to a running server.",
    "alias": "Name a version of a model, such as stable.",
}
TRAINING = {
    "train": "Train a model and publish it in the model store.",
    "evaluate": "Measure accuracy and iterations; recommend defaults.",
    "compare": "Train with several gradients, or rival networks.",
    "accelerate": "Fit a faster solver to a model.",
    "export": "Write a model as ONNX graphs.",
    "import": "Import models into the model store.",
    "push": "Upload a model to the Hugging Face hub.",
}
COMMANDS = SERVING | TRAINING


def main() -> None:
    """Run the command that the arguments name; a wrong one is one line and exit status 2."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        sys.stdout.write(_help())
    elif command == "--version":
        sys.stdout.write(f"jfb {version('jfb')}\n")
    elif command not in COMMANDS:
        near = "".join(f"; did you mean {name!r}?" for name in get_close_matches(command, COMMANDS, n=1))
        sys.exit(_fail(f"command: must be one of {', '.join(COMMANDS)} (got {command!r}{near})"))
    else:
        try:
            _run(command, rest)
        except ModuleNotFoundError as error:
            extra = "serve" if command in SERVING else "train"
            sys.exit(_fail(f"jfb {command} needs the package {error.name}: pip install 'jfb[{extra}]'"))


def _run(command: str, arguments: list[str]) -> None:
    if command == "serve":
        from app.cli import serve

        serve.main("jfb serve", arguments)
    elif command == "predict":
        from app.cli import predict

        predict.program(args=arguments, prog_name="jfb predict")
    elif command == "alias":
        from app.cli import alias

        alias.program(args=arguments, prog_name="jfb alias")
    else:
        from training.__main__ import main as train

        sys.argv = ["jfb", command, *arguments]
        train()


def _help() -> str:
    lines = (f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return "\n".join(["usage: jfb COMMAND ...", "", *lines, "", "jfb COMMAND --help describes a command.", ""])


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 2
