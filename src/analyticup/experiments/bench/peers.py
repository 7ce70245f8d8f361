"""The usual ways to train and score the same rows with Transformers, PEFT and vLLM.

Same backbone, dtype, prompts (token for token), LoRA targets and rank, rows, effective batch and optimiser values as
the kit's own line. What differs is the method, written as its users write it. Where a choice was open it favours the
rival: scoring batches as large as the kit's memory bound allows, adapters merged into the weights before generation.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pandas import DataFrame
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.trainer_callback import PrinterCallback

from analyticup.experiments.bench.flops import Shape, backward_flops, forward_flops, head_flops, prompts_load, shape_of
from analyticup.experiments.bench.harness import Done, Unavailable
from analyticup.experiments.bench.work import Work
from analyticup.model.backbone import load_tokenizer, local_folder
from analyticup.model.pins import source_kind
from analyticup.model.vllm_engine import import_vllm

IGNORED = -100
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


_whole_tokenizer = functools.cache(load_tokenizer)


def peer_tokenizer(work: Work) -> PreTrainedTokenizerBase:
    tokenizer = _whole_tokenizer(work.settings.model, work.cache)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def causal_model(work: Work) -> Any:
    """The backbone with PEFT's LoRA, as PEFT makes it."""
    return _with_lora(work, work.source.backbone(), "CAUSAL_LM")


def plain_classifier(work: Work) -> Any:
    """The backbone with a head for two classes on the last token."""
    dtype, settings = getattr(torch, work.dtype), work.settings.model
    if source_kind(settings) == "random":
        work.source.load()
        config = work.source.backbone().config
        config.num_labels = 2
        model = AutoModelForSequenceClassification.from_config(config).to(dtype)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            local_folder(settings, work.cache),
            revision=settings.revision,
            dtype=dtype,
            num_labels=2,
            trust_remote_code=False,
            use_safetensors=True,
        )
    model.config.pad_token_id = peer_tokenizer(work).pad_token_id
    return model


def classifier(work: Work, plain: Any) -> Any:
    """With PEFT's LoRA; the head is trained too."""
    return _with_lora(work, plain, "SEQ_CLS")


def _with_lora(work: Work, model: Any, task_type: str) -> Any:
    lora = work.settings.model.lora
    targets = lora.targets if lora.targets == "all-linear" else [part.strip() for part in lora.targets.split(",")]
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type=task_type
        ),
    )


def causal_examples(work: Work, rows: DataFrame) -> list[dict[str, Any]]:
    """Prompt and label word; the loss ignores the prompt."""
    encoded, words = work.encode(rows), work.source.encoder(work.settings).label_words()
    word_of = (words.negative, words.positive)
    return [
        {"input_ids": [*ids, word_of[label]], "labels": [IGNORED] * len(ids) + [word_of[label]]}
        for ids, label in zip(encoded.tokens, encoded.labels, strict=True)
    ]


def class_examples(work: Work, rows: DataFrame, labelled: bool = True) -> list[dict[str, Any]]:
    encoded = work.encode(rows)
    labels = [{"labels": label} if labelled else {} for label in encoded.labels]
    return [{"input_ids": ids, **label} for ids, label in zip(encoded.tokens, labels, strict=True)]


def training_arguments(work: Work, rows: int) -> TrainingArguments:
    train, machine = work.settings.train, work.source.machine
    steps = math.ceil(math.ceil(rows / train.batch_rows) / train.accumulate)
    return TrainingArguments(
        output_dir=str(work.table.parent / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=train.batch_rows,
        per_device_eval_batch_size=scoring_batch_rows(work),
        gradient_accumulation_steps=train.accumulate,
        gradient_checkpointing=work.settings.model.gradient_checkpointing,
        learning_rate=train.lr,
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=max(1, round(steps * train.warmup)),
        weight_decay=train.weight_decay,
        max_grad_norm=train.clip_norm,
        bf16=work.dtype == "bfloat16",
        seed=work.settings.seed,
        use_cpu=machine.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=machine.device == "cuda",
    )


def scoring_batch_rows(work: Work) -> int:
    """Rows to a scoring batch: as many of the longest prompt as the kit's token budget holds."""
    longest = int(work.encode(work.rows).lengths().max())
    return max(1, work.settings.predict.max_batch_tokens // longest)


def make_trainer(work: Work, model: Any, examples: list[dict[str, Any]], collator: Any) -> Trainer:
    arguments = training_arguments(work, len(examples))
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trained(trainer: Trainer, shape: Shape, lengths: list[int], head: float) -> Done:
    """Runs the training; `lengths` are the prompts' tokens, `head` the operations of the output layer."""
    trainer.train()
    load = prompts_load(lengths)
    flops = forward_flops(shape, load, shape.layers, shape.layers) + backward_flops(shape, load, shape.layers)
    return Done(len(lengths), sum(lengths), trainer.state.global_step, flops + head)


@dataclass
class CausalTraining:
    """`Trainer` + PEFT with the causal-LM loss: full-vocabulary logits at every position, random padded batches."""

    work: Work

    def warm_up(self) -> None:
        self.shape = self.work.shape()
        self._train(self.work.few)

    def prepare(self) -> None:
        self.work.source.load()

    def run(self) -> Done:
        return self._train(self.work.rows)

    def _train(self, rows: DataFrame) -> Done:
        examples = causal_examples(self.work, rows)
        collator = DataCollatorForSeq2Seq(peer_tokenizer(self.work), label_pad_token_id=IGNORED)
        trainer = make_trainer(self.work, causal_model(self.work), examples, collator)
        lengths = [len(example["input_ids"]) - 1 for example in examples]
        return _trained(
            trainer, self.shape, lengths, head_flops(self.shape, sum(lengths), self.shape.vocabulary, backward=True)
        )


@dataclass
class ClassifierTraining:
    """`Trainer` + PEFT with a classification head of two labels on the last token."""

    work: Work

    def warm_up(self) -> None:
        self.prepare()
        self.shape = shape_of(self.loaded, self.work.settings.model.lora)
        self._train(self.work.few)

    def prepare(self) -> None:
        self.loaded = None
        self.loaded = plain_classifier(self.work)

    def run(self) -> Done:
        return self._train(self.work.rows)

    def _train(self, rows: DataFrame) -> Done:
        examples = class_examples(self.work, rows)
        collator = DataCollatorWithPadding(peer_tokenizer(self.work))
        trainer = make_trainer(self.work, classifier(self.work, self.loaded), examples, collator)
        lengths = [len(example["input_ids"]) for example in examples]
        return _trained(trainer, self.shape, lengths, head_flops(self.shape, len(lengths), 2, backward=True))


@dataclass
class ClassifierScoring:
    """Classification head through `Trainer.predict`."""

    work: Work

    def warm_up(self) -> None:
        plain = plain_classifier(self.work)
        self.shape = shape_of(plain, self.work.settings.model.lora)
        self.model = classifier(self.work, plain)
        self._score(self.work.few)

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        lengths = self._score(self.work.rows)
        flops = forward_flops(self.shape, prompts_load(lengths), self.shape.layers, self.shape.layers)
        return Done(len(lengths), sum(lengths), flops=flops + head_flops(self.shape, len(lengths), 2))

    def _score(self, rows: DataFrame) -> list[int]:
        examples = class_examples(self.work, rows, labelled=False)
        trainer = make_trainer(self.work, self.model, examples, DataCollatorWithPadding(peer_tokenizer(self.work)))
        logits = trainer.predict(examples).predictions
        self.scores = logits[:, 1] - logits[:, 0]
        return [len(example["input_ids"]) for example in examples]


@dataclass
class Generation:
    """What the two ways through `generate` share: a merged model, left padding, one new token."""

    work: Work

    def warm_up(self) -> None:
        self.shape = self.work.shape()
        machine = self.work.source.machine
        # PEFT's merge leaves the weights frozen, unlike a merged model that was saved and loaded. PyTorch then
        # multiplies the last hidden states, whose rows lie apart, by a copy of the output matrix for each: .7 rows/s.
        self.model = causal_model(self.work).merge_and_unload().eval().requires_grad_().to(machine.device)
        self.tokenizer = peer_tokenizer(self.work)
        self.tokenizer.padding_side = "left"
        self.batch = scoring_batch_rows(self.work)
        self._score(self.work.few)
        lengths, shape = self.work.encode(self.work.rows).lengths().tolist(), self.shape
        flops = forward_flops(shape, prompts_load(lengths), shape.layers, 0)
        flops += head_flops(shape, len(lengths), shape.vocabulary)
        self.done = Done(len(lengths), sum(lengths), flops=flops)

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self.scores = self._score(self.work.rows)
        return self.done

    def _score(self, rows: DataFrame) -> np.ndarray | list[str]:
        raise NotImplementedError


class GenerateScoring(Generation):
    """`model.generate(max_new_tokens=1)` with its scores, batch by batch in the order of the rows."""

    def _score(self, rows: DataFrame) -> np.ndarray:
        words = self.work.source.encoder(self.work.settings).label_words()
        tokens = self.work.encode(rows).tokens
        margins = []
        for start in range(0, len(tokens), self.batch):
            batch = self.tokenizer.pad({"input_ids": tokens[start : start + self.batch]}, return_tensors="pt")
            with torch.inference_mode():
                made = self.model.generate(
                    **batch.to(self.model.device),
                    max_new_tokens=1,
                    do_sample=False,
                    output_scores=True,
                    return_dict_in_generate=True,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            logits = made.scores[0].float()
            margins.append((logits[:, words.positive] - logits[:, words.negative]).cpu().numpy())
        return np.concatenate(margins)


class PipelineScoring(Generation):
    """The `pipeline("text-generation")` API on the prompts as text; it gives a word and no score."""

    def _score(self, rows: DataFrame) -> list[str]:
        tokens = self.work.encode(rows).tokens
        prompts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        generator = pipeline("text-generation", model=self.model, tokenizer=self.tokenizer, device=self.model.device)
        made = generator(prompts, batch_size=self.batch, max_new_tokens=1, do_sample=False, return_full_text=False)
        return [one[0]["generated_text"] for one in made]


@dataclass
class VllmScoring:
    """vLLM: one token, with the log probabilities of the two label words. Only the backbone is loaded, which is as fast
    as a merged adapter."""

    work: Work

    def warm_up(self) -> None:
        try:
            vllm = import_vllm()
        except ImportError as error:
            raise Unavailable(f"vLLM cannot be imported ({str(error).splitlines()[0]})") from None
        settings = self.work.settings.model
        if source_kind(settings) == "random":
            raise Unavailable("vLLM needs weights on disk; random:qwen3 has none")
        lengths = self.work.encode(self.work.rows).lengths()
        self.done = Done(len(lengths), int(lengths.sum()))
        words = self.work.source.encoder(self.work.settings).label_words()
        self.words = [words.negative, words.positive]
        self.one_word = vllm.SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=self.words)
        self.model = vllm.LLM(
            model=local_folder(settings, self.work.cache),
            dtype=self.work.dtype,
            max_model_len=int(lengths.max()) + 1,
            seed=self.work.settings.seed,
            trust_remote_code=False,
        )
        self._score(self.work.few)

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self.scores = self._score(self.work.rows)
        return self.done

    def _score(self, rows: DataFrame) -> list[float]:
        prompts = [{"prompt_token_ids": list(ids)} for ids in self.work.encode(rows).tokens]
        made = self.model.generate(prompts, self.one_word, use_tqdm=False)
        found = [[one.outputs[0].logprobs[0][word].logprob for word in self.words] for one in made]
        return [yes - no for no, yes in found]
