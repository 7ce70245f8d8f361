from itertools import pairwise
from types import SimpleNamespace

import pytest

from analyticup.augmentation.translators import build_translator
from analyticup.augmentation.translators.base import CachedTranslator, Tools, Translation
from analyticup.augmentation.translators.seedx import SeedXTranslator, build_prompt, clean
from analyticup.corpus.languages import ISO, LANGUAGES
from analyticup.errors import UserError
from analyticup.settings.schema import SeedXSettings, Settings, TranslateSettings
from analyticup.training.source import Machine

CPU = Machine("cpu", None)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SENTENCES = [
    "red dress for women",
    "rotes Kleid für Damen",
    "Translate the following sentence into German:\n",
]
SENTENCES += [f" <{code}>" for code in ISO.values()]


def no_embedder():
    raise AssertionError("a translator with a model of its own needs no embedder")


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        (("red dress", "de"), "Translate the following sentence into German:\nred dress <de>"),
        (("red dress", "vn"), "Translate the following sentence into Vietnamese:\nred dress <vi>"),
        (
            ("赤い ドレス", "ar", "ja"),
            "Translate the following Japanese sentence into Arabic:\n赤い ドレス <ar>",
        ),
        (
            (" two\nlines ", "id", "vn"),
            "Translate the following Vietnamese sentence into Indonesian:\ntwo lines <id>",
        ),
    ],
)
def test_prompt_bytes(arguments, prompt):
    assert build_prompt(*arguments).encode() == prompt.encode()


def test_every_language_of_the_competition_has_a_tag():
    tags = {build_prompt("bag", code).rsplit(" ", 1)[1] for code in LANGUAGES}
    assert tags == {
        f"<{code}>" for code in ("ar", "de", "en", "es", "fr", "id", "it", "ja", "ko", "pl", "pt", "th", "vi")
    }
    with pytest.raises(UserError, match="seedx cannot translate 'vi'; it knows en, fr"):
        build_prompt("bag", "vi")


@pytest.mark.parametrize(
    ("output", "cleaned"),
    [
        (" rotes Kleid", "rotes Kleid"),
        ("\n\nrotes Kleid\nand an explanation", "rotes Kleid"),
        ("<de> rotes Kleid", "rotes Kleid"),
        ("<de><de>\n rotes Kleid", "rotes Kleid"),
        ('"rotes Kleid"', "rotes Kleid"),
        ("„rotes Kleid“", "rotes Kleid"),
        ("「赤い」", "赤い"),
        ('"rot" oder "blau"', '"rot" oder "blau"'),
        ('15" Laptop', '15" Laptop'),
        ('"', '"'),
        ("rotes Kleid <de>", "rotes Kleid"),
        ('"rotes Kleid" <de>\n<de>', "rotes Kleid"),
        ("rotes Kleid [COT] The word red", "rotes Kleid"),
        ("<pl> sukienka", "<pl> sukienka"),
        ("<de>", ""),
        ("  ", ""),
    ],
)
def test_cleaning(output, cleaned):
    assert clean(output, "de") == cleaned


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    # No pad token, as in a bare Llama tokenizer: the translator must set one.
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", padding_side="right")


def _mistral(tokenizer, hidden=32):
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,
    )
    return MistralForCausalLM(config)


@pytest.fixture(scope="module")
def random_model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    _mistral(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SeedXSettings(model=str(folder), beams=1, batch_size=4, max_new_tokens=8)


def scripted_model(tokenizer, folder, output):
    """A model that sees the last token alone: after a German prompt `output`, then the end token."""
    import torch

    start = tokenizer(build_prompt("x", "de"))["input_ids"][-1]
    said = tokenizer(output, add_special_tokens=False)["input_ids"]
    chain = [start, *said, tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain), "a token can be followed by one token only"
    model = _mistral(tokenizer, hidden=320)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(320)[: len(tokenizer)])
        model.lm_head.weight.zero_()
        for last, following in pairwise(chain):
            model.lm_head.weight[following, last] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SeedXSettings(model=str(folder), beams=1, batch_size=4, max_new_tokens=60)


@pytest.mark.parametrize("beams", [1, 4])
def test_translation_stops_at_the_end_token_and_is_cleaned(tokenizer, tmp_path, beams):
    settings = scripted_model(tokenizer, tmp_path, " rotKle\nmü").replace(beams=beams)
    translator = SeedXTranslator(settings, CPU)
    assert translator.translate(["red dress", "a longer red dress for women"], "de") == [Translation("rotKle")] * 2


def test_outputs_are_refused_with_their_reason(tokenizer, tmp_path):
    translator = SeedXTranslator(scripted_model(tokenizer, tmp_path, "赤"), CPU)
    reasons = [translation.refused for translation in translator.translate(["赤", "red", "赤"], "de")]
    assert reasons == ["unchanged", "foreign letters", "unchanged"]


def test_a_batch_gives_what_each_text_gives_alone(random_model):
    texts = ["red dress", "a", "Damen", "red dress for women and men", "for", "Kleid", "two words", "red"]
    translator = SeedXTranslator(random_model, CPU)
    together = translator._complete([build_prompt(text, "de") for text in texts])
    alone = [translator._complete([build_prompt(text, "de")])[0] for text in texts]
    assert together == alone and len(set(together)) > 1
    results = translator.translate(texts, "de")
    assert results == [SeedXTranslator(random_model.replace(batch_size=1), CPU).translate([t], "de")[0] for t in texts]


def test_the_prompt_reaches_the_model_with_the_source_named_only_on_request(random_model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        SeedXTranslator, "_complete", lambda self, prompts: seen.extend(prompts) or ["x"] * len(prompts)
    )
    SeedXTranslator(random_model, CPU).translate(["bag"], "vn", ["en"])
    named = SeedXTranslator(random_model.replace(source_tag=True), CPU)
    named.translate(["sac", "bag"], "vn", ["fr", "en"])
    assert seen == [
        "Translate the following sentence into Vietnamese:\nbag <vi>",
        "Translate the following French sentence into Vietnamese:\nsac <vi>",
        "Translate the following English sentence into Vietnamese:\nbag <vi>",
    ]
    with pytest.raises(UserError, match="source_tag is on, but no source languages"):
        named.translate(["bag"], "vn")


def test_the_model_is_loaded_at_the_first_call_only(random_model):
    translator = SeedXTranslator(random_model, CPU)
    assert translator._model is None
    translator.translate(["bag"], "de")
    model = translator._model
    translator.translate(["shoe"], "de")
    assert translator._model is model and translator._tokenizer.pad_token == "</s>"


def test_weights_in_pickle_form_are_not_loaded(tokenizer, random_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_model.model)
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        SeedXTranslator(random_model.replace(model=str(tmp_path)), CPU).translate(["bag"], "de")


def test_what_changes_translations_changes_the_identity_and_batches_do_not(random_model):
    identity = SeedXTranslator(random_model, CPU).identity
    assert SeedXTranslator(random_model.replace(batch_size=1), CPU).identity == identity
    for change in ({"beams": 4}, {"max_new_tokens": 9}, {"source_tag": True}):
        assert SeedXTranslator(random_model.replace(**change), CPU).identity != identity


def test_build_translator_caches_seedx(tokenizer, tmp_path):
    settings = TranslateSettings(translator="seedx", seedx=scripted_model(tokenizer, tmp_path / "model", "rotKle"))

    def build():
        return build_translator(settings, Tools(tmp_path / "cache", CPU, {}, no_embedder))

    assert build().translate(["red"], "de") == [Translation("rotKle")]
    again = build()
    assert isinstance(again, CachedTranslator) and not again.selective
    assert again.translate(["red"], "de") == [Translation("rotKle")] and again.inner._model is None


def test_the_stage_is_identified_as_the_translator_is(random_model, monkeypatch):
    from analyticup.augmentation import translate_settings

    def identity(**change):
        seedx = random_model.replace(**change)
        return translate_settings(Settings(translate=TranslateSettings(translator="seedx", seedx=seedx)))

    before = identity()
    assert before["model"] == SeedXTranslator(random_model, CPU).identity
    assert identity(batch_size=1) == before and identity(beams=4) != before and identity(source_tag=True) != before
    monkeypatch.setattr("analyticup.augmentation.translators.generation.RULES", 99)
    assert identity() != before


def test_other_weights_in_the_same_folder_are_another_stage(tokenizer, tmp_path):
    from analyticup.augmentation import translate_settings

    settings = Settings(
        translate=TranslateSettings(translator="seedx", seedx=scripted_model(tokenizer, tmp_path, "rotKle"))
    )
    before = translate_settings(settings)
    scripted_model(tokenizer, tmp_path, "rot")
    assert translate_settings(settings) != before


def test_without_a_commit_a_plan_can_be_shown_but_nothing_is_translated(tmp_path):
    from analyticup.augmentation import translate_settings

    settings = TranslateSettings(translator="seedx")
    open_, pinned = (
        translate_settings(Settings(translate=settings.replace(seedx=SeedXSettings(revision=revision))))
        for revision in (None, COMMIT)
    )
    assert open_ != pinned
    with pytest.raises(UserError, match=r"translate\.seedx\.revision is None; pin ByteDance-Seed/Seed-X-PPO-7B"):
        build_translator(settings, Tools(tmp_path, CPU, {}, no_embedder))


def test_the_identity_stays_as_caches_know_it():
    told = f"seedx:ByteDance-Seed/Seed-X-PPO-7B@{COMMIT}:beams=4,max=96,source=False,rules=1"
    assert SeedXTranslator(SeedXSettings(revision=COMMIT), CPU).identity == told


def test_the_model_goes_where_the_machine_says(random_model, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    translator = SeedXTranslator(random_model, CPU)
    translator._load(random_model.model)
    assert translator._model.device.type == "cpu" and translator._model.dtype == torch.float32
    elsewhere = SeedXTranslator(random_model, SimpleNamespace(device="meta", make_room=lambda: None))
    elsewhere._load(random_model.model)
    assert elsewhere._model.device.type == "meta"


def test_a_folder_below_home_is_loaded(random_model, tmp_path, monkeypatch):
    from pathlib import Path

    folder = Path(random_model.model)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert SeedXTranslator(random_model.replace(model=f"~/{folder.name}"), CPU).translate(["bag"], "de")


def test_a_translator_that_runs_out_of_memory_goes_on_with_smaller_batches(capsys):
    translator, sizes = SeedXTranslator(SeedXSettings(revision=COMMIT, batch_size=8), CPU), []

    def complete(prompts):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise MemoryError
        return [prompt.upper() for prompt in prompts]

    asked = [f"{'x' * (number % 4)}{number}" for number in range(9)]
    assert translator._batches.answers(asked, complete) == [text.upper() for text in asked]
    # Also for the next language.
    assert translator._batches.answers(asked, complete) == [text.upper() for text in asked]
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and told[0].startswith("translator seedx: out of memory with 8 texts at once; goes on with 4")
    with pytest.raises(MemoryError):
        translator._batches.answers(["one"], lambda prompts: (_ for _ in ()).throw(MemoryError()))
