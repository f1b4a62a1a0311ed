"""Foreign pickles: read the tensors of a file that torch.save wrote, without trusting it."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import ForeignFileError

MAX_PICKLE_BYTES = 64 * 2**20
"""The pickle holds the structure only; the contents of the tensors are separate files in the archive."""
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Stub:
    """Replaces every object in a file that is neither a tensor nor a plain container. All its methods do nothing."""

    def __new__(cls, *_: object, **__: object) -> "Stub":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> "Stub":
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass


def read_tensors(path: Path) -> Any:
    """Read a file of ``torch.save`` (zip format, torch 1.6 or later), keeping only tensors and plain containers.

    Optimisers, schedulers and other objects, which ``torch.load(weights_only=True)`` refuses, become stubs: nothing that the
    file names is imported or called.

    Raises:
        ForeignFileError: for a file that is not in that format, is truncated, or has tensors that do not match their storage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ForeignFileError(f"{path}: the archive must contain one data.pkl (got {len(names)})")
            if archive.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
                raise ForeignFileError(
                    f"{path}: data.pkl must be at most {MAX_PICKLE_BYTES} bytes (got {archive.getinfo(names[0]).file_size})"
                )
            return _Unpickler(archive, names[0]).load()
    except ForeignFileError:
        raise
    except zipfile.BadZipFile as error:
        raise ForeignFileError(f"{path}: not a file from torch.save (torch 1.6 or later): {error}") from error
    except Exception as error:  # a malicious pickle can make the unpickler raise anything
        raise ForeignFileError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self._archive = archive
        self._folder = name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Rebuild
            case "torch._utils", "_rebuild_parameter":
                return _RebuildParameter
            case "torch", _ if name in DTYPES:
                return type(name, (Stub,), {"dtype": DTYPES[name]})
        return type(name, (Stub,), {})  # a new class each time, so that no file can modify a shared one

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _, entries = pid
        if kind != "storage" or not isinstance(key, str) or not isinstance(entries, int):
            raise ForeignFileError(f"unknown persistent id {pid!r}")
        dtype: torch.dtype = storage.dtype
        info = self._archive.getinfo(f"{self._folder}data/{key}")
        if entries < 0 or info.file_size != entries * dtype.itemsize:
            raise ForeignFileError(f"storage {key}: {info.file_size} bytes cannot hold {entries} entries of {dtype}")
        content = bytearray(self._archive.read(info))
        return torch.frombuffer(content, dtype=dtype) if entries else torch.empty(0, dtype=dtype)


class _Rebuild:
    """Builds a tensor in place of ``torch._utils._rebuild_tensor_v2``, checking its bounds."""

    def __new__(cls, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:  # type: ignore[misc]
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise ForeignFileError(f"invalid tensor: size {size}, strides {stride}, offset {offset}")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if math.prod(size) else -1
        if last >= storage.numel():
            raise ForeignFileError(f"a tensor of size {size} is larger than its storage of {storage.numel()} entries")
        return storage.as_strided(size, stride, offset).clone()


class _RebuildParameter:
    """Returns the tensor of a parameter in place of ``torch._utils._rebuild_parameter``."""

    def __new__(cls, tensor: Tensor, *_: object) -> Tensor:  # type: ignore[misc]
        if not isinstance(tensor, Tensor):
            raise ForeignFileError("a parameter must be a tensor")
        return tensor
