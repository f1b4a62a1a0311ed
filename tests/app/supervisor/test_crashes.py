"""Engines that crash at their start; ``tests/app/routes/test_load.py`` kills one that serves."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.app.running import RunningServer, running_server, wait_until


def test_an_engine_that_cannot_start_is_restarted_with_back_off_and_reported(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readiness_error(server: RunningServer) -> str:
        answer = server.client.get("/v2/health/ready")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        error: str = answer.json()["error"]
        return error

    # Something on this machine ends every engine at its start; it may pass by itself.
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'app.engine' in sys.orig_argv:\n    os._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with running_server(store, tmp_path / "log") as server:
        wait_until(lambda: re.search("[2-9] times in a row", readiness_error(server)) is not None, 60, "it has failed twice")
        assert re.search(r"exited \d times in a row \(status \d\) and is restarted in [\d.]+ s", readiness_error(server))
        assert server.metric("jfb_engine_consecutive_exits") >= 2
        assert server.metric("jfb_engine_ready") == 0
        assert server.client.get("/v2/health/live").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
