"""Runs the engine process, which says on stderr at its end which files in app/engine/ a request goes through.

A scan of the store, for example, goes through others at the same time.
"""

import runpy
import sys
from pathlib import Path
from types import FrameType

from app import engine
from app.engine.process import EngineProcess

FOLDER = Path(engine.__path__[0])
visits: list[dict[str, None]] = []  # of each request; the shortest way counts
serve = EngineProcess.serve


def profile(frame: FrameType, event: str, argument: object) -> None:
    file = Path(frame.f_code.co_filename)
    if event == "call" and FOLDER in file.parents:
        if frame.f_code.co_name == "_submit":
            visits.append({})
        if visits:
            visits[-1].setdefault(str(file.relative_to(FOLDER)))


def profiled(process: EngineProcess) -> None:
    sys.setprofile(profile)
    serve(process)
    sys.setprofile(None)
    sys.stderr.write(f"visited: {' '.join(min(visits, key=len))}\n")


EngineProcess.serve = profiled  # type: ignore[method-assign]
runpy.run_module("app.engine", run_name="__main__")
