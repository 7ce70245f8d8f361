"""Classification heads: their scores are those of plain Transformers, and what is trained is saved with the adapter."""

from __future__ import annotations

import pytest
import torch
from pandas import DataFrame
from transformers import AutoModelForSequenceClassification

from analyticup.checks.machine import _training
from analyticup.checks.memory import training_bytes
from analyticup.checks.models import Model
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, bare, load_adapter, load_backbone, load_tokenizer, save_adapter
from analyticup.model.batches import EncodedRows, collate
from analyticup.model.heads import CLASSES, encoder_logits
from analyticup.model.module import label_hidden, output_matrix
from analyticup.model.objective import label_nll, margins
from analyticup.model.packing import collate_packed, enable_packing
from analyticup.model.prompt import PairEncoder, PromptEncoder
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import LoraSettings, ModelSettings, PromptSettings, Settings
from analyticup.training.fold import encode_rows, score_rows
from analyticup.training.source import Machine, ModelSource
from analyticup.verdict import Verdict

ENCODERS = ("random:xlm-roberta", "random:deberta-v2")
DECODERS = ("random:qwen3", "random:qwen2", "random:gemma3")
PAIRS = [("red shoe", "shoes,red shoes"), ("a", "b"), ("mug with a long handle", "kitchen,mugs"), ("</s> <pad>", "x")]
ROWS = DataFrame(PAIRS, columns=["query", "target"]).assign(label=[1, 0, 1, 0])


def settings(backbone, **lora):
    return ModelSettings(backbone=backbone, head="classifier", dtype="float32", lora=LoraSettings(r=2, **lora))


def source_of(model, tmp_path):
    return ModelSource(Settings(model=model), tmp_path, Machine("cpu", None))


def changed(model):
    """Values that matter in all that is trained."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval()


@pytest.mark.parametrize("backbone", ENCODERS)
@pytest.mark.parametrize("adapters", [True, False])
def test_scores_of_an_encoder_are_those_of_plain_transformers(backbone, adapters, tmp_path):
    model = settings(backbone, enabled=adapters)
    source, own = source_of(model, tmp_path), Settings(model=model)
    trained = changed(add_adapter(source.backbone(), model.lora, seed=1))
    ours = score_rows(ROWS, trained, own, source, "test")
    merged = trained.merge_and_unload()
    merged.save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    tokenizer = load_tokenizer(model, tmp_path)
    given = tokenizer(*map(list, zip(*PAIRS[:3], strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**given).logits
    assert torch.allclose(torch.tensor(ours[:3]), logits[:, 1] - logits[:, 0], atol=1e-5)
    # A batch with pads gives what rows by themselves give.
    batch = collate(encode_rows(ROWS, source.encoder(own)), range(4), source.pad_id)
    with torch.no_grad():
        both = encoder_logits(plain, batch)
    assert torch.allclose(torch.tensor(ours), both[:, 1] - both[:, 0], atol=1e-5)


def test_two_texts_are_joined_as_the_tokenizer_joins_them_and_no_text_becomes_a_special_token(tmp_path):
    tokenizer = load_tokenizer(settings(ENCODERS[0]), tmp_path)
    encoder = PairEncoder(tokenizer, PromptSettings(max_query_tokens=5, max_target_tokens=4))
    ids = encoder.encode(["red", "abcdefgh"], ["shoe", "abcdefgh"])
    assert ids == tokenizer(["red", "abcde"], ["shoe", "abcd"])["input_ids"]
    (odd,) = PairEncoder(tokenizer, PromptSettings()).encode(["</s>"], ["<pad>"])
    assert sum(number in tokenizer.all_special_ids for number in odd) == 4
    with pytest.raises(UserError, match="puts no special tokens around two texts"):
        PairEncoder(load_tokenizer(settings(DECODERS[0]), tmp_path), PromptSettings()).encode(["a"], ["b"])


def test_token_types_of_the_second_text_begin_behind_the_first_separator():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, type_vocab_size=2, **sizes)).eval()
    model.config.sep_token_id = 3
    rows = EncodedRows([[2, 7, 3, 8, 9, 3], [2, 7, 3, 8, 3]], [0, 1])
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]])
    batch = collate(rows, [0, 1], 0)
    with torch.no_grad():
        expected = model(input_ids=batch["ids"], attention_mask=(batch["ids"] > 0).long(), token_type_ids=types).logits
        assert torch.equal(encoder_logits(model, batch), expected)


@pytest.mark.parametrize("backbone", DECODERS)
def test_a_decoders_head_is_on_the_last_token_packed_or_not(backbone, tmp_path):
    model = settings(backbone, layers=1)
    base = load_backbone(model, tmp_path, torch.float32)
    enable_packing(base)
    trained = changed(add_adapter(base, LoraSettings(r=2), seed=1))
    prompts = encode_rows(ROWS, PromptEncoder(load_tokenizer(model, tmp_path), PromptSettings()))
    with torch.no_grad():
        one_by_one = torch.cat([trained(input_ids=torch.tensor([ids])).logits for ids in prompts.tokens])
        for batch in (collate(prompts, range(4), 0), collate_packed(prompts, range(4))):
            logits = label_hidden(trained, batch)
            assert torch.allclose(logits[batch["rows"].argsort()], one_by_one, atol=1e-5)
            found = margins(logits, output_matrix(trained), CLASSES)
            assert torch.allclose(found, logits[:, 1] - logits[:, 0])


def test_the_loss_is_the_cross_entropy_over_two_classes():
    logits, labels = torch.tensor([[0.5, 2.0], [1.0, -1.0]]), torch.tensor([1, 1])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(label_nll(logits, torch.eye(2), CLASSES, labels, smoothing=0.05), expected)


@pytest.mark.parametrize(
    ("backbone", "lora"), [(ENCODERS[1], {}), (ENCODERS[0], {"enabled": False}), (DECODERS[2], {})]
)
def test_head_and_adapter_are_saved_together_and_taken_off_again(backbone, lora, tmp_path):
    model = settings(backbone, **lora)
    base = load_backbone(model, tmp_path, torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    trained = changed(add_adapter(base, model.lora, seed=1))
    save_adapter(trained, tmp_path, backbone)
    kept = {name: value.clone() for name, value in trained.named_parameters() if value.requires_grad}
    assert {name.split(".")[2] for name in kept} >= {"classifier" if backbone in ENCODERS else "score"}
    bare(base)
    assert before.keys() == base.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    loaded = dict(load_adapter(base, tmp_path).named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in kept.items())
    bare(base)
    # Another seed, another head.
    heads = []
    for seed in (1, 1, 2):
        fresh = add_adapter(base, model.lora, seed)
        heads.append(torch.cat([v.flatten() for name, v in fresh.named_parameters() if "modules_to_save" in name]))
        bare(base)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model.quantisation=nf4"], "model.quantisation = nf4: not with model.head = classifier"),
        (["QC.train.objective=dpo"], "QC.train.objective = dpo compares with the model before training"),
    ],
)
def test_settings_that_a_head_has_no_sense_for_are_refused(given, said, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("model: {head: classifier}")
    with pytest.raises(UserError, match=said):
        load_settings(config, given)


def test_the_check_advises_no_4_bits_for_a_head_and_counts_all_weights_where_all_are_trained():
    model = Model("backbone", "model", "hub", "a/b", None, None, 1.2e10)
    small = _training(Settings(model=settings("a/b")), model, 2, ("GPU memory", 10**9, 1))
    assert small.verdict == Verdict.FAIL and "nf4" not in small.text
    few, every = (training_bytes(Settings(model=settings("a/b", enabled=on)), model, 4, False) for on in (True, False))
    assert every - few > 15 * 1.2e10


def test_models_that_do_not_go_with_the_head_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is an encoder, which says no next word; set model\.head=classifier"):
        load_backbone(ModelSettings(backbone=ENCODERS[0]), tmp_path, torch.float32)
    encoder, decoder = (load_backbone(settings(name), tmp_path, torch.float32) for name in (ENCODERS[0], DECODERS[0]))
    with pytest.raises(UserError, match=r"model\.lora\.layers = 1: only for decoders"):
        add_adapter(encoder, LoraSettings(layers=1), 0)
    with pytest.raises(UserError, match=r"all weights are trained for encoders only"):
        add_adapter(decoder, LoraSettings(enabled=False), 0)
