"""``python -m app predict``, against a running server."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from app.cli.predict import BLOCKS, MAX_WIDTH, program, sparkline
from tests.app.running import RunningServer


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three noisy PNG files."""
    paths = [tmp_path / f"{name}.png" for name in ("one", "two", "three")]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def predict(*arguments: object, **environment: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(program, [*map(str, arguments)], env={"COLUMNS": "120", **environment})


@pytest.mark.parametrize("watch", [[], ["--watch"]])
def test_the_table_says_what_the_server_answers(server: RunningServer, images: list[Path], watch: list[str]) -> None:
    said = predict(*images, "--url", server.url, "--tolerance", 1e-4, *watch)
    assert said.exit_code == 0, said.stderr
    files = [base64.b64encode(path.read_bytes()).decode() for path in images]
    answer = server.predict({"images": files, "tolerance": 1e-4}).json()["predictions"]
    lines = [line.split() for line in said.stdout.splitlines() if ".png" in line]
    assert len(lines) == 3
    for line, path, one in zip(lines, images, answer, strict=True):
        share = f"{max(one['probabilities']):.1%}"
        assert line[:6] == [path.name, one["label"], share, str(one["iterations"]), f"{one['residual']:.2g}", "converged"]
        assert len(line) == 6 + len(watch)
        if watch:
            assert len(line[6]) == min(MAX_WIDTH, one["iterations"])
            assert (line[6][0], line[6][-1]) == (BLOCKS[-1], BLOCKS[0])


@pytest.mark.parametrize("watch", [[], ["--watch"]])
def test_errors_are_reported_in_one_line(
    server: RunningServer, images: list[Path], watch: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--url", "http://127.0.0.1:1"], "could not reach "),
        (["--url", "nonsense"], "could not reach "),
        (["--url", server.url, "--tolerance", "-1"], "422: tolerance: must be"),
        (["--url", server.url, "--model", "nothing"], "404: no model 'nothing' (available: digits"),
    ):
        with pytest.raises(SystemExit) as ended:
            program(args=[str(images[0]), *arguments, *watch])
        assert ended.value.code == 1
        said = capsys.readouterr()
        assert words in said.err
        assert len(said.err.splitlines()) == 1
        assert said.out == ""


def test_a_server_that_requires_a_key_gets_it(keyed_server: RunningServer, images: list[Path]) -> None:
    assert "401: authorization" in predict(images[0], "--url", keyed_server.url).stderr
    assert predict(images[0], "--url", keyed_server.url, "--key", "secret").exit_code == 0
    assert predict(images[0], "--url", keyed_server.url, JFB_KEY="secret").exit_code == 0


@pytest.mark.parametrize(
    ("residuals", "drawn"),
    [
        ([], ""),
        ([0.5], "▁"),
        ([1.0, 1e-7], "█▁"),
        ([10.0 ** (7 - k) for k in range(8)], BLOCKS[::-1]),
        ([1.0, 0.1, 0.0], "█▁▁"),
        ([1e-3, 1.0, None], "▁█!"),
    ],
)
def test_a_sparkline_has_a_block_an_iteration_on_a_log_axis(residuals: list[float | None], drawn: str) -> None:
    assert sparkline(residuals) == drawn


def test_words_and_numbers_are_whole_on_a_line_of_80_columns(server: RunningServer, images: list[Path]) -> None:
    said = predict(*images, "--url", server.url, "--tolerance", 1e-30, "--watch", COLUMNS="80").stdout
    assert "max_iterations" in said
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_long_sparkline_is_thinned_between_its_ends() -> None:
    line = sparkline([0.9**k for k in range(1000)])
    assert len(line) == MAX_WIDTH
    assert list(line) == sorted(line, reverse=True)
    assert (line[0], line[-1]) == ("█", "▁")


def test_without_images_the_samples_of_the_model_are_sent_and_json_is_the_response(digits_server: RunningServer) -> None:
    command = [sys.executable, "-m", "app", "predict", "--model", "digits", "--url", digits_server.url, "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    samples = digits_server.client.get("/models/digits/samples").json()
    answer = digits_server.predict({"inputs": [one["input"] for one in samples]}, "/models/digits/predict").json()
    assert [one["label"] for one in json.loads(said.stdout)["predictions"]] == [one["label"] for one in answer["predictions"]]
    assert "give image files, or --model NAME" in predict("--url", digits_server.url).stderr
