"""GGUF backbones: known by the sha256 of their file, converted to safetensors once.

Weights that a file holds in the dtype they are used in are mapped, not read: all workers share them, and only what is
touched is in memory. So a machine without bf16 gets a second copy in float32.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils
from transformers.utils import logging

from analyticup.engine.artifacts import RECORD, Record, Unusable
from analyticup.engine.files import file_sha256, lock, publish_folder
from analyticup.engine.memory import give_back_at_once, let_go
from analyticup.engine.progress import track
from analyticup.engine.workers import apart
from analyticup.errors import UserError
from analyticup.model.pins import CONVERTED_DTYPE, GGUF, check_packaged, converted_folder, gguf_package, read_conversion
from analyticup.model.weights import load_whole

# Of a tensor, read at once.
_ROWS = 4096


def converted_gguf(backbone: str, cache: Path, dtype: str = CONVERTED_DTYPE) -> Path:
    """The folder of a GGUF model's safetensors copy in bfloat16 or float32: made once (some twenty seconds, in a
    process of its own), then hashed before each use."""
    # Runs with other artifacts folders may share the cache; the second one waits and finds the work done.
    with lock(cache, waits=True):
        return _copy(backbone, cache, dtype)


def _copy(backbone: str, cache: Path, dtype: str) -> Path:
    folder = converted_folder(backbone, cache, dtype)
    read = read_conversion(backbone, cache, dtype)
    if isinstance(read, Unusable):
        plain = dtype == CONVERTED_DTYPE
        given = (_convert, backbone.removeprefix(GGUF)) if plain else (_widen, _copy(backbone, cache, CONVERTED_DTYPE))
        what = f"converting {backbone} to safetensors" if plain else f"writing {backbone} in {dtype}"
        again = f" ({folder}: {read.reason})" if folder.is_dir() else ""
        print(f"{what}, once{again}", file=sys.stderr, flush=True)
        with publish_folder(folder) as scratch:
            apart(*given, scratch)
            Record(identity=folder.name).save(scratch)
    return folder


def _widen(source: Path, out: Path) -> None:
    give_back_at_once()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            weights = {name: value.float() for name, value in load_file(path).items()}
            save_file(weights, out / path.name, metadata={"format": "pt"})
        elif path.name != RECORD:
            shutil.copyfile(path, out / path.name)


def quiet_transformers() -> None:
    """Switches off Transformers' own bars and advice, which would break up the kit's progress lines."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _convert(name: str, out: Path) -> None:
    quiet_transformers()
    give_back_at_once()
    # Inside `out`, which is removed as a whole where a conversion was killed.
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        if name.endswith(".gguf"):
            source = Path(name).expanduser().resolve()
        else:
            source = _assembled(name, Path(scratch) / "model.gguf")
        with _fast_reader(), _own_bar():
            _convert_tokenizer(source, out)
            let_go()
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

    gguf.GGUFReader, gguf.dequantize = functools.cache(PlainReader), _in_parts
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.dequantize = reader, dequantize


def _in_parts(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A tensor's values in float32. The gguf package's own function makes them twice on the way, which for the largest
    tensor is a third of what a conversion takes."""
    one = dequantize(data[:1], kind)
    found = np.empty((len(data), *one.shape[1:]), dtype=one.dtype)
    for start in range(0, len(data), _ROWS):
        found[start : start + _ROWS] = dequantize(data[start : start + _ROWS], kind)
    return found


@contextlib.contextmanager
def _own_bar() -> Iterator[None]:
    """Within, Transformers shows how far a conversion is by the kit's bar: its own can be switched off nowhere."""
    foreign = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, desc: track(tensors, "convert, tensors")
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = foreign


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
    model = load_whole(
        AutoModelForCausalLM,
        str(source.parent),
        f"model.backbone = {source}",
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Dequantised weights are plain weights; the leftover quantisation config would make save_pretrained refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
