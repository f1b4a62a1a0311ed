"""Hub: models from and to Hugging Face repositories, without one that can be reached."""

import errno
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from jfb import CheckpointError, ModelConfig, from_pretrained, push_to_hub, save
from jfb.architectures import build
from jfb.config import ArchitectureSpec, InputSpec
from jfb.hub import HubError, _explain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model, with a file that does not belong to it."""
    config = ModelConfig(
        architecture=ArchitectureSpec(name="implicit_mlp", arguments={"width": 8}),
        input=InputSpec(shape=(4,), kind="vector"),
        classes=["apple", "pear", "plum"],
    )
    save(tmp_path / "fruit" / "1", config, build("implicit_mlp", (4,), 3, {"width": 8}))
    (tmp_path / "fruit" / "1" / "run.py").write_text("raise SystemExit")
    return tmp_path / "fruit" / "1"


class Hub:
    """A hub that keeps what is uploaded in a folder."""

    def __init__(self, repositories: Path) -> None:
        self.repositories = repositories

    def __call__(self, library_name: str) -> "Hub":
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        (self.repositories / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        for path in huggingface_hub.utils.filter_repo_objects(
            folder_path.iterdir(), allow_patterns=allow_patterns, key=lambda p: p.name
        ):
            (self.repositories / repo_id / path.name).write_bytes(path.read_bytes())

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str], library_name: str) -> str:
        return str(self.repositories / repo_id)


def test_a_model_that_was_pushed_is_loaded_by_its_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setenv("JFB_MODEL_STORE", str(tmp_path))
    assert push_to_hub("fruit", "owner/fruit") == "https://hub/owner/fruit"
    assert {path.name for path in (tmp_path / "hub/owner/fruit").iterdir()} == {"config.json", "model.safetensors"}
    inputs = torch.rand(3, 4)
    assert torch.equal(from_pretrained("owner/fruit").predict(inputs).logits, from_pretrained(folder).predict(inputs).logits)


def test_what_is_not_a_model_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json"):
        push_to_hub(tmp_path, "owner/name")


def test_without_its_library_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfb.hub.find_spec", lambda name: None)
    for call in (lambda: from_pretrained("owner/name"), lambda: push_to_hub(folder, "owner/name")):
        with pytest.raises(HubError, match="pip install huggingface_hub"):
            call()


@pytest.mark.parametrize("model", ["no/such/folder", "owner/../name", "owner/name with spaces"])
def test_an_invalid_id_is_an_error(model: str) -> None:
    with pytest.raises(HubError, match="not a local folder, and "):
        from_pretrained(model)


def test_a_download_that_does_not_fit_on_the_disk_is_not_taken_for_a_hub_that_cannot_be_reached() -> None:
    assert _explain(OSError(errno.ENOSPC, "No space left on device")).endswith(
        " sent could not be written: [Errno 28] No space left on device"
    )


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    """In a separate process, because the hub's address is read when its library is imported."""
    environment = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_none",
        "PATH": "",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    code = f"""
from pathlib import Path
from jfb.hub import HubError, from_pretrained, push_to_hub
for call in (lambda: from_pretrained("owner/name"), lambda: push_to_hub(Path({str(folder)!r}), "owner/name")):
    try:
        call()
    except HubError as error:
        assert "owner/name: " in str(error), error
        assert "could not reach 127.0.0.1:9: " in str(error), error
    else:
        raise SystemExit("expected a HubError")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0, finished.stderr
