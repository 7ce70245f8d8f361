"""Marian and NLLB translators, on tiny models made here: no weights are fetched."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest

from analyticup.augmentation.translators import build_translator
from analyticup.augmentation.translators.base import CachedTranslator, Tools, Translation
from analyticup.augmentation.translators.seq2seq import Seq2SeqTranslator, pair_folders
from analyticup.errors import UserError
from analyticup.settings.schema import Seq2SeqSettings, Settings, TranslateSettings
from analyticup.training.source import Machine

WORDS = ["red", "dress", "for", "women", "rotes", "kleid", "bag", "shoe", "two", "words", "men", "and"]
CPU = Machine("cpu", None)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def no_embedder():
    raise AssertionError("a translator with a model of its own needs no embedder")


@pytest.fixture(scope="module")
def marian_tokenizer(tmp_path_factory):
    import sentencepiece
    from transformers import MarianTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    written = io.BytesIO()
    sentences = [f"{left} {right}" for left in WORDS for right in WORDS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="word",
        vocab_size=len(WORDS) + 3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(written.getvalue())
    pieces = ["</s>", "<unk>", *(f"▁{word}" for word in WORDS), "<pad>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return MarianTokenizer.from_pretrained(folder)


def marian(tokenizer, folder, scripted=None, width=32):
    """A random Marian model; with `scripted` one that says these words, then the end token, whatever it reads."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    size, end, pad = tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.pad_token_id
    config = MarianConfig(
        **{"vocab_size": size, "d_model": width, "encoder_layers": 1, "decoder_layers": 1, "init_std": 0.5},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        **{"max_position_embeddings": 64, "tie_word_embeddings": scripted is None},
        **{"eos_token_id": end, "forced_eos_token_id": None, "pad_token_id": pad, "decoder_start_token_id": pad},
    )
    model = MarianMTModel(config)
    if scripted is not None:
        chain = [pad, *(tokenizer.convert_tokens_to_ids(f"▁{word}") for word in scripted), end]
        _script(model, chain, size)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Seq2SeqSettings(model=str(folder), beams=1, batch_size=4, max_new_tokens=8)


def _script(model, chain, size):
    """What a decoder position holds is its own token alone, and from it follows the next one of the chain."""
    import torch

    with torch.no_grad():
        for layer in model.model.decoder.layers:
            for block in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                block.weight.zero_()
                block.bias.zero_()
        for place in (model.model.decoder, model.model.encoder):
            place.embed_tokens.weight.zero_()
            place.embed_tokens.weight[:, :size] = 100 * torch.eye(size)
        model.lm_head.weight.zero_()
        for last, following in pairwise(chain):
            model.lm_head.weight[following, last] = 10.0


def test_a_translation_ends_at_the_end_token(marian_tokenizer, tmp_path):
    for beams in (1, 3):
        settings = marian(marian_tokenizer, tmp_path, ["rotes", "kleid"]).replace(beams=beams)
        translator = Seq2SeqTranslator(settings, CPU)
        assert (
            translator.translate(["red dress", "dress for women"], "de", ["en", "en"])
            == [Translation("rotes kleid")] * 2
        )
        assert len(calls(translator)(["red dress"], "de", ["en"])) == 1
        # The start token, two words and the end token.
        assert calls(translator)(["red dress"], "de", ["en"])[0]["length"] == 4


def calls(translator):
    """Translates and returns what each `generate` was called with."""

    def translate(texts, language, sources):
        seen = []
        inner = translator._model.generate

        def generate(**given):
            tokens = inner(**given)
            seen.append({**given, "rows": len(given["input_ids"]), "length": tokens.shape[1]})
            return tokens

        translator._model.generate = generate
        translator.translate(texts, language, sources)
        translator._model.generate = inner
        return seen

    return translate


def test_a_batch_gives_what_each_text_gives_alone_and_is_of_like_length(marian_tokenizer, tmp_path):
    settings = marian(marian_tokenizer, tmp_path)
    texts = ["red", "two words for women and men", "bag", "red dress for women", "shoe", "dress and bag", "men"]
    sources = ["en"] * len(texts)
    translator = Seq2SeqTranslator(settings, CPU)
    translator._load(translator._model_for("en", "de"))
    together = translator._complete(texts, settings.model, "en", "de")
    alone = [translator._complete([text], settings.model, "en", "de")[0] for text in texts]
    assert together == alone and len(set(together)) > 1
    seen = calls(translator)(texts, "de", sources)
    assert [call["rows"] for call in seen] == [4, 3]
    assert [call["input_ids"].shape[1] for call in seen] == [2, 7]
    assert {call["max_new_tokens"] for call in seen} == {8}
    results = translator.translate(texts, "de", sources)
    single = Seq2SeqTranslator(settings.replace(batch_size=1), CPU)
    assert results == [single.translate([text], "de", ["en"])[0] for text in texts]


def test_cached_translations_ask_no_model(marian_tokenizer, tmp_path, monkeypatch):
    machine = marian(marian_tokenizer, tmp_path / "model", ["rotes", "kleid"])
    settings = TranslateSettings(translator="seq2seq", seq2seq=machine)

    def build():
        return build_translator(settings, Tools(tmp_path / "cache", CPU, {}, no_embedder))

    first = build()
    assert isinstance(first, CachedTranslator) and not first.selective and first.uses_source
    expected = [Translation("rotes kleid"), Translation(None, refused="no letter of its script")]
    assert first.translate(["red dress"], "de", ["en"]) == expected[:1]
    assert first.translate(["red dress"], "ar", ["en"]) == expected[1:]
    again = build()
    assert again.translate(["red dress"], "de", ["en"]) == expected[:1]
    assert again.translate(["red dress"], "ar", ["en"]) == expected[1:]
    assert again.inner._model is None
    assert again.translate(["red dress"], "de", ["fr"]) == expected[:1] and again.inner._model is not None


def test_outputs_are_cleaned_and_refused_with_their_reason(monkeypatch):
    monkeypatch.setattr(
        Seq2SeqTranslator,
        "_complete",
        lambda self, texts, **_: [f'"{text} Kleid"\nmore' if text else "" for text in texts],
    )
    translator = Seq2SeqTranslator(Seq2SeqSettings(model="a/b", revision=COMMIT), CPU)
    assert translator.translate(["x", ""], "de", ["en", "fr"]) == [
        Translation("x Kleid"),
        Translation(None, refused="empty"),
    ]
    with pytest.raises(UserError, match="needs the source languages"):
        translator.translate(["x"], "de")


def test_one_model_per_pair_is_read_from_its_folder(marian_tokenizer, tmp_path):
    pattern = str(tmp_path / "opus-{source}-{target}")
    marian(marian_tokenizer, tmp_path / "opus-en-de", ["rotes", "kleid"])
    marian(marian_tokenizer, tmp_path / "opus-fr-vi", ["bag"])
    settings = Seq2SeqSettings(model=pattern, beams=1)
    assert {pair: path.name for pair, path in pair_folders(pattern).items()} == {
        ("en", "de"): "opus-en-de",
        ("fr", "vn"): "opus-fr-vi",
    }
    translator = Seq2SeqTranslator(settings, CPU)
    assert translator.translate(["red dress", "robe"], "de", ["en", "fr"]) == [
        Translation("rotes kleid"),
        Translation(None, refused="no model for its languages"),
    ]
    assert translator.translate(["robe"], "vn", ["fr"]) == [Translation("bag")]
    assert translator._loaded == str(tmp_path / "opus-fr-vi")
    identity = translator.identity
    marian(marian_tokenizer, tmp_path / "opus-en-de", ["bag"])
    assert Seq2SeqTranslator(settings, CPU).identity != identity
    with pytest.raises(UserError, match=r"translate\.seq2seq\.revision: one commit cannot pin"):
        Seq2SeqTranslator(settings.replace(revision=COMMIT), CPU)
    with pytest.raises(UserError, match=r"translate\.seq2seq\.model: no folder of the form .*none-\{source\}"):
        Seq2SeqTranslator(settings.replace(model=str(tmp_path / "none-{source}")), CPU)


def nllb(folder):
    import torch
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = NllbTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        extra_special_tokens=["eng_Latn", "fra_Latn", "deu_Latn", "arb_Arab"],
    )
    torch.manual_seed(0)
    config = M2M100Config(
        **{"vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "init_std": 0.5},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        **{"max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    )
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Seq2SeqSettings(model=str(folder), beams=1, max_new_tokens=5)


def test_a_model_of_many_languages_is_told_source_and_target(tmp_path):
    translator = Seq2SeqTranslator(nllb(tmp_path), CPU)
    translator.translate(["red dress"], "de", ["en"])
    code = translator._tokenizer.convert_tokens_to_ids
    seen = calls(translator)(["bag", "sac"], "ar", ["en", "fr"])
    assert [call["input_ids"][0, 0].item() for call in seen] == [code("eng_Latn"), code("fra_Latn")]
    assert {call["forced_bos_token_id"] for call in seen} == {code("arb_Arab")}
    with pytest.raises(UserError, match=r"translate\.seq2seq\.codes: .* knows no language 'pol_Latn' \(for pl\)"):
        translator.translate(["bag"], "pl", ["en"])
    bare = Seq2SeqTranslator(nllb(tmp_path).replace(codes=["en=eng_Latn"]), CPU)
    with pytest.raises(UserError, match=r"translate\.seq2seq\.codes has no 'de'; add de=CODE"):
        bare.translate(["bag"], "de", ["en"])


def test_a_prefix_tells_a_model_its_target(tmp_path, monkeypatch):
    """As MADLAD is told it."""
    seen = []
    settings = Seq2SeqSettings(model=str(tmp_path), prefix="<2{target}> ", codes=["en=en"])
    translator = Seq2SeqTranslator(settings, CPU)
    monkeypatch.setattr(translator, "_load", lambda model: None)
    monkeypatch.setattr(translator, "_tokenizer", lambda lines, **how: seen.extend(lines))
    monkeypatch.setattr(translator, "_generate", lambda inputs, **options: None)
    monkeypatch.setattr(translator, "_decode", lambda tokens: ["red shoes"])
    (found,) = translator.translate(["rote  Schuhe"], "en", ["xx"])
    assert seen == ["<2en> rote Schuhe"] and found.text == "red shoes"
    with pytest.raises(UserError, match=r"translate\.seq2seq\.codes has no 'de'"):
        translator.translate(["red shoes"], "de", ["en"])


def test_weights_in_pickle_form_are_not_loaded(marian_tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    settings = marian(marian_tokenizer, tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        Seq2SeqTranslator(settings, CPU).translate(["bag"], "de", ["en"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": None}, r"translate\.seq2seq\.model is not set"),
        ({"revision": "main"}, r"translate\.seq2seq\.revision is 'main'; pin a/b"),
    ],
)
def test_settings_that_cannot_work_are_named(change, told):
    with pytest.raises(UserError, match=told):
        Seq2SeqTranslator(Seq2SeqSettings(model="a/b", revision=COMMIT).replace(**change), CPU)


def test_what_changes_translations_changes_the_identity_and_batches_do_not():
    settings = Seq2SeqSettings(model="a/b", revision=COMMIT)
    identity = Seq2SeqTranslator(settings, CPU).identity
    assert Seq2SeqTranslator(settings.replace(batch_size=1), CPU).identity == identity
    for change in ({"beams": 1}, {"max_new_tokens": 9}, {"revision": COMMIT[::-1]}, {"codes": ["de=deu_Latn"]}):
        assert Seq2SeqTranslator(settings.replace(**change), CPU).identity != identity


def test_the_check_looks_at_the_translation_models(marian_tokenizer, tmp_path):
    from analyticup.checks.models import model_findings, needed_models

    def look(model, revision=None):
        machine = Seq2SeqSettings(model=model, revision=revision)
        settings = Settings(translate=TranslateSettings(translator="seq2seq", seq2seq=machine))
        models = [model for model in needed_models(settings, tmp_path) if model.use == "translator"]
        return [(finding.verdict, finding.text) for finding in model_findings(models)]

    for pair in ("en-de", "fr-de"):
        marian(marian_tokenizer, tmp_path / f"opus-{pair}")
    assert [level for level, _ in look(str(tmp_path / "opus-{source}-{target}"))] == ["OK", "OK"]
    ((level, text),) = look(str(tmp_path / "none-{source}-{target}"))
    assert level == "FAIL" and "neither a folder nor a hub id" in text
    ((level, text),) = look("owner/model")
    assert level == "FAIL" and "translate.seq2seq.revision=COMMIT" in text


def test_the_stage_is_identified_by_the_weights_and_not_by_the_batches():
    from analyticup.augmentation import translate_settings as _translate_identity

    def identity(**change):
        machine = Seq2SeqSettings(**{"model": "a/b", "revision": COMMIT, **change})
        return _translate_identity(Settings(translate=TranslateSettings(translator="seq2seq", seq2seq=machine)))

    assert identity(batch_size=1) == identity()
    assert identity(beams=1) != identity() and identity(revision=COMMIT[::-1]) != identity()
    for change in ({"volumes": ["de=5"]}, {"source_languages": ["en"]}, {"positive_share": 0.5}):
        own = Settings(translate=TranslateSettings(translator="lexicon", **change))
        assert _translate_identity(own) != _translate_identity(
            Settings(translate=TranslateSettings(translator="lexicon"))
        )


def test_the_identity_stays_as_caches_know_it():
    settings = Seq2SeqSettings(model="a/b", revision=COMMIT, codes=["de=deu_Latn"])
    told = f"seq2seq:a/b@{COMMIT}:beams=4,max=96,codes=[('de', 'deu_Latn')],rules=1"
    assert Seq2SeqTranslator(settings, CPU).identity == told


def test_the_model_goes_where_the_machine_says(marian_tokenizer, tmp_path, monkeypatch):
    import torch

    settings = marian(marian_tokenizer, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    translator = Seq2SeqTranslator(settings, CPU)
    translator._load(settings.model)
    assert translator._model.device.type == "cpu" and translator._model.dtype == torch.float32
    elsewhere = Seq2SeqTranslator(settings, SimpleNamespace(device="meta", make_room=lambda: None))
    elsewhere._load(settings.model)
    assert elsewhere._model.device.type == "meta"


def test_a_cached_translator_that_needs_the_source_is_not_asked_without(marian_tokenizer, tmp_path):
    settings = TranslateSettings(translator="seq2seq", seq2seq=marian(marian_tokenizer, tmp_path / "model", ["bag"]))
    translator = build_translator(settings, Tools(tmp_path / "cache", CPU, {}, no_embedder))
    with pytest.raises(UserError, match="seq2seq needs the source languages, but none were given"):
        translator.translate(["bag"], "de")
