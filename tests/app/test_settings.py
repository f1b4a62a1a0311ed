"""Settings: flags, variables, and what is said of wrong ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.serve import main
from app.settings import Settings


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "200", **variables}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
def test_help_lists_every_setting_with_its_description_and_default() -> None:
    said = " ".join(run("--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in said
        assert field.description
        assert " ".join(field.description.split()) in said
    assert "(default: 8000)" in said
    assert "(default: 67108864, 64 MiB)" in said
    assert "(default: 30)" in said
    assert "(default: model_store)" in said


@pytest.mark.parametrize(
    ("arguments", "variables", "parts"),
    [
        (["--port", "99999"], {}, ("--port must be at most 65535 (got 99999)",)),
        ([], {"JFB_PORT": "many"}, ("--port must be a valid integer", "(got many)")),
        (["--precision", "half"], {}, ("--precision must be 'auto', 'float32' or 'mixed' (got half)",)),
        ([], {"JFB_SLOTS": "0"}, ("--slots must be at least 1 (got 0)",)),
        (["--otlp-endpoint", "collector"], {}, ("--otlp-endpoint must be a URL such as http://localhost:4318 (got collector)",)),
        (
            ["--max-rows-per-request", "9"],
            {"JFB_MAX_WAITING_ROWS": "8"},
            ("--max-rows-per-request must be at most --max-waiting-rows, 8", "(got 9)"),
        ),
    ],
)
def test_a_wrong_setting_is_named_without_a_traceback(
    arguments: list[str],
    variables: dict[str, str],
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main("python -m app", arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in parts:
        assert part in said


def test_variables_set_what_flags_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JFB_MODEL_STORE", "elsewhere"), ("JFB_PORT", "1234"), ("JFB_DEFAULT_MODEL", "digits")):
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.model_store, settings.port, settings.default_model) == (Path("elsewhere"), 1234, "digits")
    assert settings.host == "127.0.0.1"
