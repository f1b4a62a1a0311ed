"""``jfb``: one command for both sides."""

import os
import re
import socket
import subprocess
import sys

import pytest

import commandline
from training.__main__ import app as training


def jfb(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "commandline", *arguments], capture_output=True, text=True, timeout=60)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The same in this process."""
    monkeypatch.setattr(sys, "argv", ["jfb", *arguments])
    with pytest.raises(SystemExit) as ended:
        commandline.main()
    return int(ended.value.code or 0)


def test_help_lists_every_command_within_80_columns_and_imports_neither_side() -> None:
    program = (
        "import sys, commandline; sys.argv = ['jfb']; commandline.main();"
        "assert not {'torch', 'jfb', 'app', 'training'} & sys.modules.keys()"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60).stdout
    assert [line.split()[0] for line in said.splitlines() if line.startswith("  ")] == list(commandline.COMMANDS)
    assert max(map(len, said.splitlines())) <= 80


def test_every_command_of_training_is_one_of_jfb() -> None:
    names = {one.name or one.callback.__name__ for one in training.registered_commands if one.callback is not None}
    assert names | {group.name for group in training.registered_groups} == set(commandline.TRAINING)


def test_a_typo_is_one_line_with_the_nearest_command() -> None:
    said = jfb("trian")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "(got 'trian'; did you mean 'train'?)" in said.stderr


@pytest.mark.slow
def test_the_help_of_every_command_names_it_and_fits_80_columns() -> None:
    program = (
        "import sys, commandline\n"
        "for command in [*commandline.COMMANDS, 'import authors', 'import hub']:\n"
        "    sys.argv = ['jfb', *command.split(), '--help']\n"
        "    try:\n        commandline.main()\n"
        "    except SystemExit as ended:\n        assert ended.code == 0\n"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    for command in commandline.COMMANDS:
        assert f"sage: jfb {command} " in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert "…" not in said.stdout  # no default is cut
    defaults = re.findall(r"default: ([^])]*)", re.sub(r"[│\s]+", " ", said.stdout))
    assert {"http://127.0.0.1:8000", "1, 2, 5, 10, 20, 50", "model_store"} <= {one.strip() for one in defaults}
    assert [one for one in defaults if re.search(r"null|None|True|False|[\[{<'\"]|\d{9}", one)] == []


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["predict"], 2, "Usage: jfb predict"),
        (["alias", "digits"], 2, "Usage: jfb alias"),
        (["serve", "--prot", "1"], 2, "flag: must be one that jfb serve --help lists (got --prot; did you mean --port?)"),
        (["serve", "--port", "99999"], 2, "--port must be at most 65535 (got 99999)"),
        (["export", "nothing", "--store", "nowhere"], 1, "no model 'nothing'"),
    ],
)
def test_commands_run_on_their_side(
    arguments: list[str], status: int, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == status
    assert part in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["serve", "--model-store", "nowhere"], 2, "--model-store must be a folder of models (got nowhere: No such file"),
        (["serve", "--device", "nonsense", "--model-store", "."], 2, "--device must be one that PyTorch can use here"),
    ],
)
def test_a_server_that_can_never_start_ends_with_the_reason(arguments: list[str], status: int, part: str) -> None:
    said = jfb(*arguments)
    assert said.returncode == status
    assert part in said.stderr


@pytest.mark.slow
def test_a_port_is_served_by_one_protocol() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    said = jfb("serve", "--model-store", ".", "--port", port, "--grpc-port", port)
    assert (said.returncode, "cannot bind port" in said.stderr) == (3, True)
