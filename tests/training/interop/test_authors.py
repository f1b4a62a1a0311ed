import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jfb import load, predict
from jfb.architectures import build
from training.errors import ForeignFileError
from training.interop.authors import FACTS, Family, import_authors, read_weights
from training.interop.foreign_pickle import Stub, read_tensors


def authors_state(family: Family) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names, with what is in their files and unused."""
    facts = FACTS[family]
    torch.manual_seed(0)
    network = build("authors_resnet", facts.shape, len(facts.classes), {"stem": facts.stem})
    state = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("standardise")}
    state["lat_batch_norm.0.num_batches_tracked"] = torch.tensor(7)
    if facts.stem == "resnet":
        for name in ("bn_1", "bn_2"):
            state |= {f"{name}.{key}": torch.ones(64) for key in ("weight", "bias", "running_mean", "running_var")}
    return state


def as_the_authors_save(state: dict[str, torch.Tensor], path: Path, *, key: str = "net_state_dict") -> None:
    """Save weights in the authors' format: with pickled optimiser and scheduler objects, which ``weights_only=True`` refuses."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.Adam([weight])
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 5)
    torch.save({"epoch": 3, key: OrderedDict(state), "optimizer": optimiser, "lr_scheduler": scheduler}, path)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["net_state_dict", "T_state_dict"])
@pytest.mark.parametrize("family", Family)
def test_their_pth_becomes_a_model_with_the_same_weights(family: Family, key: str, tmp_path: Path) -> None:
    state = authors_state(family)
    as_the_authors_save(state, tmp_path / "theirs.pth", key=key)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "theirs.pth", weights_only=True)  # the reason why there is a reader of our own
    folder = import_authors(tmp_path / "theirs.pth", family, tmp_path / "store", "theirs")
    checkpoint = load(folder)
    loaded = checkpoint.network.state_dict()
    for name in loaded:
        if not name.startswith("standardise."):
            assert torch.equal(loaded[name], state[name]), name
    assert checkpoint.config.input.shape == FACTS[family].shape
    inputs = torch.randint(0, 256, (2, *FACTS[family].shape)).float()
    assert predict(checkpoint.network, inputs, tolerance=1e-3, max_iterations=5).logits.isfinite().all()


def test_safetensors_and_pth_of_the_same_weights_are_the_same(tmp_path: Path) -> None:
    state = authors_state(Family.MNIST)
    as_the_authors_save(state, tmp_path / "theirs.pth")
    save_file(state, tmp_path / "theirs.safetensors")
    pth, safe = read_weights(tmp_path / "theirs.pth"), read_weights(tmp_path / "theirs.safetensors")
    assert pth.keys() == safe.keys()
    assert all(torch.equal(pth[name], safe[name]) for name in pth)


def test_tensors_that_share_a_storage_or_are_strided_come_out_right(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    saved = {"transposed": whole.T, "row": whole[1], "half": whole.half(), "number": torch.tensor(3), "none": torch.empty(0, 2)}
    torch.save(saved, tmp_path / "tensors.pt")
    read = read_tensors(tmp_path / "tensors.pt")
    for name, tensor in saved.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class EvalBomb(Bomb):
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("bomb", [Bomb, EvalBomb])
def test_a_malicious_pickle_is_read_without_anything_in_it_being_called(bomb: type[Bomb], tmp_path: Path) -> None:
    path = tmp_path / "malicious.pth"
    torch.save({"net_state_dict": OrderedDict(authors_state(Family.MNIST)), "optimizer": bomb(tmp_path / "executed")}, path)
    assert isinstance(read_tensors(path)["optimizer"], Stub)
    import_authors(path, Family.MNIST, tmp_path / "store", "theirs")
    assert not (tmp_path / "executed").exists()


def test_a_module_named_in_the_file_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: pass\n")
    content = b"\x80\x02cevil\nThing\n)\x81."
    with zipfile.ZipFile(tmp_path / "malicious.pth", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert isinstance(read_tensors(tmp_path / "malicious.pth"), Stub)
    assert not (tmp_path / "imported").exists()


def forged(path: Path, size: tuple[int, ...], *, entries: int, content: int) -> Path:
    """A tensor of a size that its storage may not hold."""

    class Rebuild:
        def __reduce__(self) -> tuple[Any, ...]:
            strides = tuple(torch.empty(size, device="meta").stride())
            return (torch._utils._rebuild_tensor_v2, (Storage(), 0, size, strides, False, OrderedDict()))

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", entries) if isinstance(obj, Storage) else None

    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump({"weight": Rebuild()})
        archive.writestr("archive/data/0", b"\0" * content)
    return path


def test_a_tensor_larger_than_its_bytes_is_rejected(tmp_path: Path) -> None:
    assert read_tensors(forged(tmp_path / "good", (2, 2), entries=4, content=16))["weight"].shape == (2, 2)
    with pytest.raises(ForeignFileError, match="larger than its storage of 4 entries"):
        read_tensors(forged(tmp_path / "long", (2, 3), entries=4, content=16))
    with pytest.raises(ForeignFileError, match="16 bytes cannot hold 1000000 entries"):
        read_tensors(forged(tmp_path / "lying", (1000, 1000), entries=1_000_000, content=16))


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_rejected_by_name(keep: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"theirs{suffix}"
    if suffix == ".pth":
        as_the_authors_save(authors_state(Family.MNIST), path)
    else:
        save_file(authors_state(Family.MNIST), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ForeignFileError, match="theirs"):
        import_authors(path, Family.MNIST, tmp_path / "store", "theirs")
    assert not (tmp_path / "store").exists(), "nothing is left in the store"


def test_weights_of_another_family_are_rejected_with_what_differs(tmp_path: Path) -> None:
    save_file(authors_state(Family.MNIST), tmp_path / "mnist.safetensors")
    with pytest.raises(ForeignFileError, match=r"not the weights of the svhn network: .* is missing.* \(and \d+ more\)"):
        import_authors(tmp_path / "mnist.safetensors", Family.SVHN, tmp_path / "store", "theirs")


@pytest.mark.slow
@pytest.mark.long
def test_the_published_mnist_network_has_its_published_accuracy(shared: Path, tmp_path: Path) -> None:
    """99.36 % on the 10,000 test images at tolerance 0.1, each image stopping on its own."""
    from rich.console import Console

    from training.data import read
    from training.loop.score import score
    from training.recipe import DataRecipe

    folder = import_authors(shared / "authors" / "mnist_fpn.safetensors", Family.MNIST, tmp_path, "authors")
    checkpoint = load(folder)
    expected = load_file(shared / "authors" / "mnist_fpn.safetensors")
    assert torch.equal(checkpoint.network.state_dict()["fc_y.weight"], expected["fc_y.weight"])
    recipe = DataRecipe(source=str(shared / "data" / "mnist"))
    part = read(recipe, ["test"], Console(quiet=True)).splits["test"]
    found = score(checkpoint.network, part, checkpoint.config.serving, torch.device("cpu"))
    assert len(part.labels) == 10_000
    assert found.accuracy == pytest.approx(0.9936, abs=5e-5)
    assert found.converged == 1
