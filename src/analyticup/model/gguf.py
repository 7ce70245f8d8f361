"""GGUF backbones: known by the sha256 of their file, converted to safetensors once."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.artifacts import Record, Unusable, read_record
from analyticup.errors import UserError
from analyticup.files import file_sha256, lock, publish_folder
from analyticup.model.pins import check_packaged

if TYPE_CHECKING:
    import numpy as np

GGUF = "gguf:"
# Raised when the conversion below changes what it writes, so that old conversions are not used.
CONVERSION_VERSION = 1


def gguf_sha256(backbone: str) -> str:
    """sha256 of a GGUF backbone: that of the file, or the one its package promises (checked on assembly).

    Raises UserError where there is no such file or package, or where the package promises other than the pinned bytes.
    """
    name = backbone.removeprefix(GGUF)
    if name.endswith(".gguf"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"model.backbone: no file {path}; give the path of a .gguf file or the name of a package")
        return file_sha256(path)
    promised = str(_gguf_package(name).EXPECTED_SHA256)
    check_packaged(name, "*.gguf", promised)
    return promised


def _gguf_package(name: str) -> Any:
    from importlib import import_module

    try:
        package = import_module(name)
        if hasattr(package, "EXPECTED_SHA256"):
            return package
        raise ImportError
    # A name with a dot at its start is a TypeError, an empty one a ValueError.
    except (ImportError, TypeError, ValueError):
        raise UserError(
            f"model.backbone: {GGUF}{name} names neither a .gguf file nor an installed package of one; "
            f"pip install it or give a path"
        ) from None


def converted_folder(backbone: str, cache: Path) -> Path:
    """Where the converted copy of a GGUF backbone lies, or would lie."""
    return cache / f"gguf-{gguf_sha256(backbone)[:16]}-v{CONVERSION_VERSION}"


def read_conversion(backbone: str, cache: Path) -> Record | Unusable:
    """The record of a GGUF backbone's converted copy, all of it hashed, or why the copy cannot be used."""
    folder = converted_folder(backbone, cache)
    return read_record(folder, folder.name, Record)


def converted_gguf(backbone: str, cache: Path) -> Path:
    """GGUF to safetensors once (some twenty seconds), then found by its source's sha256 and hashed before use."""
    folder = converted_folder(backbone, cache)
    # Runs with other artifacts folders may share the cache; the second one waits and finds the work done.
    with lock(cache, waits=True):
        read = read_conversion(backbone, cache)
        if isinstance(read, Unusable):
            again = f" ({folder}: {read.reason})" if folder.is_dir() else ""
            print(f"converting {backbone} to safetensors, once{again}", file=sys.stderr, flush=True)
            with publish_folder(folder) as scratch:
                _convert(backbone.removeprefix(GGUF), scratch)
                Record(identity=folder.name).save(scratch)
    return folder


def _convert(name: str, out: Path) -> None:
    import tempfile

    # Inside `out`: killed, it goes with it.
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        if name.endswith(".gguf"):
            source = Path(name).expanduser().resolve()
        else:
            source = _assembled(name, Path(scratch) / "model.gguf")
        with _fast_reader():
            _convert_tokenizer(source, out)
            _convert_weights(source, out)


@contextlib.contextmanager
def _fast_reader() -> Iterator[None]:
    """Within, Transformers parses a GGUF file once and not for each of config, tokenizer and weights, on a plain array.

    The gguf package's reader slices a memory map for each of half a million vocabulary entries, ten seconds each time;
    slices of a plain view of the same bytes take a third of that.
    """
    import gguf
    import numpy as np

    reader = gguf.GGUFReader

    class PlainReader(reader):
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)

    gguf.GGUFReader = functools.cache(PlainReader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _assembled(name: str, target: Path) -> Path:
    """The package's parts as one file at `target`; raises UserError where its sha256 is not the promised one."""
    try:
        source = Path(_gguf_package(name).assemble(target))
        found = file_sha256(source)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"package {name}: its parts could not be put together ({error}); "
            f"delete the environment (.venv) and run ./run.sh again"
        ) from None
    check_packaged(name, source.name, found)
    return source


def _convert_tokenizer(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(out)


def _convert_weights(source: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Dequantised weights are plain weights; the leftover quantisation config would make save_pretrained refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
