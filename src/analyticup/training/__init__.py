"""Cross-validation: folds without leakage, one LoRA adapter per fold, and its scores."""

from __future__ import annotations

from typing import Any, Final

from analyticup.engine.graph import Cut, Part, Stage
from analyticup.model.pins import identity
from analyticup.settings.schema import Settings, decisive
from analyticup.training.published import adapters_identity

# Among the counts of what ran a backbone: in which dtype and on which device its weights were.
PRECISION: Final = "frozen weights"


def fold_settings(own: Settings) -> dict[str, Any]:
    folds = decisive(own.folds)
    if folds["group_by"] == "query":
        # As when there was no other.
        del folds["group_by"]
    return {**folds, "seed": own.seed}


def training_settings(settings: Settings) -> dict[str, Any]:
    model, prompt, train = decisive(settings.model), decisive(settings.prompt), decisive(settings.train)
    # What two of these name is in the weights; with the third nothing is trained.
    del model["backbone"], model["revision"], model["adapters"]
    # It adds a training and changes none.
    del train["refit"]
    if prompt["reasoning"]["template"] is None:
        del prompt["reasoning"]
    # As when there was no other.
    for own, name, usual in (
        (model, "quantisation", "none"),
        (model, "head", "label_word"),
        (model, "own_dropout", False),
        (model["lora"], "enabled", True),
        (prompt, "pivot", "none"),
        (prompt, "level_marker", None),
        (train, "start_from", "base"),
        (train, "distil", 0),
    ):
        if own[name] == usual:
            del own[name]
    return {
        "weights": identity(settings.model),
        **model,
        "prompt": prompt,
        "train": train,
        "seed": settings.seed,
    }


def pretraining_settings(own: Settings) -> dict[str, Any]:
    return training_settings(own.replace(**{"train.start_from": "base", "train.distil": 0.0}))


def teaching_settings(own: Settings) -> dict[str, Any]:
    return training_settings(own.replace(**{"train.distil": 0.0}))


def adopted_settings(own: Settings) -> dict[str, Any]:
    """What scores by given adapters depend on: how the model is run, and the prompt, but no training."""
    used = {name: value for name, value in training_settings(own).items() if name not in ("train", "seed")}
    return {**used, "adapters": adapters_identity(str(own.model.adapters))}


def scoring_settings(settings: Settings, *names: str) -> dict[str, Any]:
    """Those of the named `predict` settings that are in use: they move scores a little."""
    predict = decisive(settings.predict)
    return {name: predict[name] for name in names if predict[name]}


def predict_settings(own: Settings) -> dict[str, Any]:
    found = scoring_settings(own, "merge_adapters", "compile_min_rows")
    # As when there was no other; another one rounds in another way.
    return found if own.predict.engine == "transformers" else {**found, "engine": own.predict.engine}


def predict_cut(own: Settings) -> Cut:
    """Shards have whole batches, so another size of these makes other shards."""
    return Cut(own.predict.shards, {"max_batch_tokens": own.predict.max_batch_tokens})


def held_out_cut(own: Settings) -> Cut:
    """The training is the step before the shards."""
    return Cut(own.train.held_out_shards, {"max_batch_tokens": own.train.max_batch_tokens}, first="trained")


def models(own: Settings) -> dict[str, Part]:
    """Name -> part of each model that a task trains: `fold0` and so on; `all` is of all rows (`train.refit`)."""
    parts = [Part(fold) for fold in range(own.folds.n)] + [ON_ALL] * (own.train.refit != "none")
    return {str(part): part for part in parts}


def predicting(own: Settings) -> dict[str, Part]:
    """Those of them that score dev and test."""
    return {name: part for name, part in models(own).items() if own.train.refit != "instead" or part == ON_ALL}


ON_ALL = Part(purpose="all")
FOLDS = Stage("folds", version=1, run="analyticup.training.stage:folds", settings=fold_settings, model=False)
# Before TRAIN, on the other task's rows, where `train.start_from` says so.
PRETRAIN = Stage("pretrain", version=3, run="analyticup.training.stage:pretrain", settings=pretraining_settings)
# What TRAIN learns from besides the labels, where `train.distil` says so.
TEACH = Stage("teach", 3, "analyticup.training.stage:teach", teaching_settings, held_out_cut)
TRAIN = Stage("train", 5, "analyticup.training.stage:train", training_settings, held_out_cut)
# In the place of TRAIN where adapters are given.
ADOPT = Stage("train", version=1, run="analyticup.training.adopt:adopt", settings=adopted_settings, model=False)
PREDICT = Stage("predict", 4, "analyticup.training.stage:predict", predict_settings, predict_cut)
