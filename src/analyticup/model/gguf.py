"""GGUF backbones: known by the sha256 of their file, converted to safetensors once."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from analyticup.engine.artifacts import Record, Unusable
from analyticup.engine.files import file_sha256, lock, publish_folder
from analyticup.errors import UserError
from analyticup.model.pins import GGUF, check_packaged, converted_folder, gguf_package, read_conversion


def converted_gguf(backbone: str, cache: Path) -> Path:
    """The folder of a GGUF model's safetensors copy: made once (some twenty seconds), then hashed before each use."""
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
    # Inside `out`, which is removed as a whole where a conversion was killed.
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
        source = Path(gguf_package(name).assemble(target))
        found = file_sha256(source)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"package {name}: its parts could not be put together ({error}); "
            f"delete the environment (.venv) and run ./run.sh again"
        ) from None
    check_packaged(name, source.name, found)
    return source


def _convert_tokenizer(source: Path, out: Path) -> None:
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(out)


def _convert_weights(source: Path, out: Path) -> None:
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
