"""`./run.sh merge`: a whole model for programs that take no adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from analyticup.engine.files import publish_folder
from analyticup.errors import UserError
from analyticup.model.backbone import load_adapter, load_backbone, load_tokenizer
from analyticup.settings.paths import resolve
from analyticup.sharing.layout import ADAPTER, open_bundle
from analyticup.terminal import make_console
from analyticup.training.adopt import is_of_base
from analyticup.training.published import STAGES
from analyticup.training.source import model_source


def merge(options: argparse.Namespace) -> int:
    """Writes the base model with one of a bundle's adapters added to its weights, in safetensors, and the tokenizer.

    The sum is rounded to the dtype of the base model, so scores differ a little from those with the adapter apart.
    Raises UserError where the bundle has no such adapter, it is of another base model than the settings', or the folder
    is there already.
    """
    out: Path = options.out
    if out.exists():
        raise UserError(f"{out}: is there already; give a new folder with --out")
    with open_bundle(options.bundle) as opened:
        settings = opened.settings(options.overrides)
        stages = opened.folder / STAGES
        if not (stages / options.adapter / ADAPTER).is_file():
            known = ", ".join(sorted(path.parent.name for path in stages.glob(f"*/{ADAPTER}"))) or "none"
            raise UserError(f"--adapter {options.adapter}: not in the bundle; its adapters are {known}")
        if not is_of_base(opened.artifact(options.adapter).record, settings.model):
            raise UserError(
                f"--adapter {options.adapter}: was trained on another base model than model.backbone = "
                f"{settings.model.backbone}, revision {settings.model.revision}; give the bundle's"
            )
        source, cache = model_source(settings), resolve(settings.paths.cache)
        backbone = load_backbone(settings.model, cache, getattr(torch, source.dtype))
        merged = load_adapter(backbone, stages / options.adapter).merge_and_unload()
        with publish_folder(out) as scratch:
            merged.save_pretrained(scratch)
            load_tokenizer(settings.model, cache).save_pretrained(scratch)
    make_console().print(f"{out}: {options.adapter} in the weights of {settings.model.backbone}, {source.dtype}")
    return 0
