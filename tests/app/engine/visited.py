"""Runs the engine process, which says on stderr at its end which files in app/engine/ its last request went through."""

import runpy
import sys
from pathlib import Path
from types import FrameType

from app import engine
from app.engine.process import EngineProcess

FOLDER = Path(engine.__path__[0])
visited: dict[str, None] = {}
serve = EngineProcess.serve


def profile(frame: FrameType, event: str, argument: object) -> None:
    file = Path(frame.f_code.co_filename)
    if event == "call" and FOLDER in file.parents:
        if frame.f_code.co_name == "_submit":
            visited.clear()
        visited.setdefault(str(file.relative_to(FOLDER)))


def profiled(process: EngineProcess) -> None:
    sys.setprofile(profile)
    serve(process)
    sys.setprofile(None)
    sys.stderr.write(f"visited: {' '.join(visited)}\n")


EngineProcess.serve = profiled  # type: ignore[method-assign]
runpy.run_module("app.engine", run_name="__main__")
