"""`check` on the machine: device, precision, memory and disk. Numbers that are estimates are called so."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch
from huggingface_hub import constants

from analyticup.augmentation import translates
from analyticup.augmentation.translators import engine_fault
from analyticup.augmentation.translators.generation import dtype_on
from analyticup.checks.finding import Finding, nearest_existing
from analyticup.checks.memory import (
    PROCESS_BYTES,
    adapter_bytes,
    backbone_bytes,
    cpu_process_bytes,
    cpu_run_bytes,
    state_bytes,
    training_bytes,
)
from analyticup.checks.models import DTYPE_BYTES, Model, download_bytes, needed_models
from analyticup.checks.timing import task_rows
from analyticup.engine.cluster import cluster_address, cluster_fault
from analyticup.engine.workers import cores, gpus_of_all
from analyticup.errors import UserError
from analyticup.model.backbone import choose_precision, cpu_has_bf16
from analyticup.model.compiling import compiler_fault
from analyticup.model.pins import CONVERTED_DTYPE, converted_folder
from analyticup.model.ranks import devices_fault
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import MachineSettings, Settings
from analyticup.terminal import size_text
from analyticup.training.source import Machine
from analyticup.training.vllm_scoring import scoring_fault
from analyticup.verdict import Verdict

# Stages write the rows again, as Parquet, each time at most about as large as the raw files (assumed).
_TABLE_COPIES: Final = 6
# All tables of the sample corpus together stay below this (assumed).
_SAMPLE_BYTES: Final = 50e6
# Its rows, all splits of both tasks and what is made of them (counted: 2,400).
_SAMPLE_ROWS: Final = 2_500
# Above this share of the free memory, weights leave little for the rest of the work (assumed).
_TIGHT: Final = 0.7
# Weights on their way to a GPU pass through main memory file by file, of so many bytes at most, as large models are
# published.
_FILE_BYTES: Final = 5e9
# How the note on a slow number format begins; a run shows it too.
SLOW: Final = "slow:"
# Above this number of parameters, a CPU is too slow (assumed).
_LARGE: Final = 2e9


@dataclass(frozen=True)
class MachineFacts:
    """`device`: cpu, cuda or mps; `gpus`: name and free bytes of each; `fault`: why no device can be had, or ""."""

    device: str
    gpus: tuple[tuple[str, int], ...]
    free_memory: int
    fault: str = ""


def look_at_machine(settings: MachineSettings) -> MachineFacts:
    gpus: list[tuple[str, int]] = []
    if settings.accelerator != "cpu" and torch.cuda.is_available():
        numbers = range(torch.cuda.device_count())
        gpus = [(torch.cuda.get_device_name(number), torch.cuda.mem_get_info(number)[0]) for number in numbers]
    try:
        device = Machine(settings.accelerator, settings.threads).device
    except UserError as error:
        return MachineFacts("cpu", (), free_memory(), str(error))
    return MachineFacts(device, tuple(gpus), free_memory())


def free_memory() -> int:
    """Bytes of main memory that this process may still take; in a container its limit counts too."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    # Cached file contents count as used but give way.
    return min(free, limit - used + int(stat.get("inactive_file", 0)))


def worker_bytes(settings: Settings) -> tuple[float, float]:
    """Estimate of the main memory that a worker takes which runs the stages' models, one after the other, on the CPU,
    and on a GPU, to which weights go file by file. A translator or an embedder takes the backbone's place."""
    backbone, *others = needed_models(settings, resolve(settings.paths.cache))
    value_bytes = DTYPE_BYTES[choose_precision(settings.model.dtype, "cpu").dtype]
    each = [cpu_process_bytes(settings, task, backbone, value_bytes) for task in settings.tasks]
    each += [PROCESS_BYTES + (model.parameters or 0.0) * DTYPE_BYTES[dtype_on("cpu")] for model in others]
    largest = max((model.parameters or 0.0) * DTYPE_BYTES["bfloat16"] for model in (backbone, *others))
    return max(each), PROCESS_BYTES + min(largest, _FILE_BYTES)


def device_findings(settings: Settings, machine: MachineFacts) -> Iterable[Finding]:
    if machine.fault:
        yield Finding(Verdict.FAIL, machine.fault)
        return
    for name, free in machine.gpus:
        yield Finding(Verdict.OK, f"device: {name}, {size_text(free)} of its memory free")
    workers, given = settings.machine.workers, f"machine.workers = {settings.machine.workers}"
    if fault := devices_fault(settings.machine.devices, machine.device, len(machine.gpus)):
        yield Finding(Verdict.FAIL, fault)
    elif machine.gpus and (each := _on_one_gpu(settings, machine)) > 1:
        gpus = gpus_of_all(len(machine.gpus))
        yield Finding(Verdict.NOTE, f"{given}: GPUs on this machine: {gpus}, so {each} share one")
    if machine.device == "cpu" and workers > cores():
        yield Finding(Verdict.NOTE, f"{given}: CPU cores for them: {cores()}; more workers than cores gain nothing")
    if machine.device == "cpu":
        why = "machine.accelerator = cpu" if settings.machine.accelerator == "cpu" else "no GPU"
        yield Finding(Verdict.OK, f"device: {why}: CPU, {cores()} cores")
    elif not machine.gpus:
        yield Finding(Verdict.OK, f"device: {machine.device}")
    precision = choose_precision(settings.model.dtype, machine.device)
    yield Finding(Verdict.OK, f"precision: {precision.dtype}, as {precision.reason}")
    if machine.device == "cpu" and precision.dtype == "bfloat16" and not cpu_has_bf16():
        text = "bfloat16 on a CPU without bf16 instructions, about 30 times slower than float32; set model.dtype=auto"
        yield Finding(Verdict.NOTE, f"{SLOW} {text}")
    each = [task_settings(settings, task) for task in settings.tasks]
    faults = [compiler_fault(own) for own in each]
    faults += [engine_fault(own.translate, machine.device) for own in each if translates(own)]
    faults += [scoring_fault(own, precision.dtype, machine.device) or _shared(own, machine) for own in each]
    yield from (Finding(Verdict.FAIL, fault) for fault in dict.fromkeys(faults) if fault)


def _shared(own: Settings, machine: MachineFacts) -> str:
    """Why the workers' engines for `predict` do not fit beside each other, or ""."""
    sharing, share = _on_one_gpu(own, machine), own.predict.memory_share
    if own.predict.engine != "vllm" or sharing * share <= 1:
        return ""
    return (
        f"predict.memory_share = {share:g}: {sharing} processes share a GPU and each would take as much; set it to "
        f"{math.floor(90 / sharing) / 100:g}, or machine.workers=1"
    )


def engine_findings(settings: MachineSettings) -> Iterable[Finding]:
    """Whether the stages could run where `machine.engine` says."""
    if settings.engine == "ray":
        fault = cluster_fault()
        where = f"the cluster at {cluster_address()}" if cluster_address() else "a cluster of its own on this machine"
        yield Finding(Verdict.FAIL if fault else Verdict.OK, fault or f"engine: Ray, on {where}")


def memory_findings(settings: Settings, models: list[Model], machine: MachineFacts) -> Iterable[Finding]:
    """Weights against free memory, one model at a time; on their way to a GPU they pass through main memory."""
    yield Finding(Verdict.OK, f"memory: {size_text(machine.free_memory)} of main memory free")
    workers = settings.machine.workers
    if machine.device == "cpu" and models[0].parameters is not None:
        yield _cpu_run(settings, models[0], machine)
    loading = workers * settings.machine.devices
    places = [("main memory", machine.free_memory, loading)]
    places += [(name, free, _on_one_gpu(settings, machine)) for name, free in machine.gpus[:1]]
    for model in models:
        if model.kind == "random":
            continue
        if model.parameters is None:
            yield Finding(
                Verdict.SKIPPED,
                f"memory for the {model.use}: unknown, as neither files nor name of {model.name} give it",
            )
            continue
        dtype = loaded_dtype(model, settings, machine.device)
        # Of the other models, each task loads one.
        most = loading if model.use == "backbone" else min(workers, len(settings.tasks))
        size, form = model.parameters * DTYPE_BYTES[dtype], dtype
        if model.use == "backbone" and settings.model.quantisation != "none":
            size, form = backbone_bytes(settings, model, DTYPE_BYTES[dtype]), settings.model.quantisation
        for place, free, sharing in places:
            weights = f"memory for the {model.use}: {{}} in {form} for the weights only"
            # To a GPU the backbone goes file by file.
            passing = model.use == "backbone" and len(places) > 1 and place == "main memory"
            yield _fits(weights, min(size, _FILE_BYTES) if passing else size, place, free, min(most, sharing))
        if model.use == "backbone":
            yield _training(settings, model, DTYPE_BYTES[dtype], places[-1])
        if machine.device == "cpu" and model.parameters > _LARGE:
            yield Finding(
                Verdict.NOTE, f"{model.use}: {model.name} is meant for a GPU; on a CPU it would take very long"
            )


def _training(settings: Settings, model: Model, value_bytes: int, place: tuple[str, int, int]) -> Finding:
    on_gpu = place[0] != "main memory"
    what = "training: {} for weights, adapters with their optimiser and the activations of a batch"
    whole = _fits(what, training_bytes(settings, model, value_bytes, on_gpu), *place)
    least = training_bytes(settings, model, value_bytes, on_gpu, least=True)
    if whole.verdict != Verdict.FAIL:
        return whole
    if least * place[2] > place[1]:
        if settings.model.head == "classifier":
            return whole
        small = settings.replace(**{"model.quantisation": "nf4"})
        less = training_bytes(small, model, value_bytes, on_gpu, least=True)
        fits = on_gpu and settings.model.quantisation == "none" and less * place[2] <= place[1]
        advice = f"; with model.quantisation=nf4 it takes {size_text(less)}: see configs/hardware/24gb.yaml"
        return Finding(whole.verdict, whole.text + advice * fits)
    # Few batches are as large as that. A process that runs out of main memory is ended without a word, though.
    how = "; lower train.max_batch_tokens or machine.workers"
    if on_gpu:
        how = f"; the largest ones then run their layers again or in smaller passes, down to {size_text(least)}"
    return Finding(Verdict.NOTE, whole.text + how)


def _cpu_run(settings: Settings, model: Model, machine: MachineFacts) -> Finding:
    size = cpu_run_bytes(settings, model, DTYPE_BYTES[loaded_dtype(model, settings, machine.device)])
    found = _fits("memory for the run: {} over all processes", size, "main memory", machine.free_memory, 1)
    if found.verdict == Verdict.OK:
        return found
    # Mapped weights count for each worker, and give way where memory is short: no reason to refuse the run.
    advice = "; machine.workers=1 takes less" if settings.machine.workers > 1 else ""
    return Finding(Verdict.NOTE, found.text + advice)


def _on_one_gpu(settings: Settings, machine: MachineFacts) -> int:
    """How many workers share a GPU; none do on Ray."""
    if settings.machine.engine == "ray":
        return 1
    return math.ceil(settings.machine.workers * settings.machine.devices / max(1, gpus_of_all(len(machine.gpus))))


def _fits(what: str, each: float, place: str, free: int, count: int) -> Finding:
    """`what` has a {} where the size belongs, which `count` workers take `each`."""
    size = count * each
    if count > 1:
        what += f" in {count} workers"
    verdict, fit = Verdict.OK, "fits into"
    if size > free:
        verdict, fit = Verdict.FAIL, "does not fit into"
    elif size > _TIGHT * free:
        verdict, fit = Verdict.NOTE, "barely fits into"
    return Finding(verdict, f"{what.format(size_text(size))} (estimate) {fit} the {size_text(free)} free of {place}")


def loaded_dtype(model: Model, settings: Settings, device: str) -> str:
    """The dtype in which the run would load the model."""
    if model.use == "backbone":
        return choose_precision(settings.model.dtype, device).dtype
    return dtype_on(device)


def disk_findings(settings: Settings, models: list[Model], machine: Machine) -> Iterable[Finding]:
    """What the run would write against what is free, added up per disk."""
    backbone, cache = models[0], resolve(settings.paths.cache)
    dtype = loaded_dtype(backbone, settings, machine.device)
    states = sum(
        state_bytes(task_settings(settings, task), backbone, _rows(settings, task), DTYPE_BYTES[dtype])
        for task in settings.tasks
    )
    tables = _table_bytes(settings) + adapter_bytes(settings, backbone) + states
    wanted = [(resolve(settings.paths.artifacts), tables)]
    for model in models:
        widened = model.kind == "gguf" and dtype != CONVERTED_DTYPE
        if widened and (model.folder is None or not converted_folder(model.name, cache, dtype).is_dir()):
            wanted.append((cache, DTYPE_BYTES[dtype] * (model.parameters or 0.0)))
        if model.folder is None and model.kind == "gguf":
            # The assembled GGUF file is next to its bf16 copy until the conversion ends.
            wanted.append((cache, 3 * (model.parameters or 0.0)))
        elif model.folder is None and model.kind == "hub":
            wanted.append((Path(constants.HF_HUB_CACHE), download_bytes(model)))
    by_disk: dict[int, list[tuple[Path, float]]] = {}
    for path, size in wanted:
        place = nearest_existing(path)
        by_disk.setdefault(place.stat().st_dev, []).append((place, size))
    for parts in by_disk.values():
        place, needed = parts[0][0], sum(size for _, size in parts)
        free = shutil.disk_usage(place).free
        verdict, only = (Verdict.FAIL, "only ") if needed > free else (Verdict.OK, "")
        text = f"disk: the run needs about {size_text(needed)} (estimate); {only}{size_text(free)} free at {place}"
        yield Finding(verdict, text)


def _rows(settings: Settings, task: str) -> float:
    """Rows of a task that a model reads: those of its files, with what stages make, or of the sample corpus."""
    if settings.data.dir is None:
        return _SAMPLE_ROWS / len(settings.tasks)
    rows = task_rows(task_settings(settings, task), task)
    return rows.whole + rows.asked


def _table_bytes(settings: Settings) -> float:
    if settings.data.dir is None:
        return _SAMPLE_BYTES
    folder = Path(settings.data.dir).expanduser()
    paths = [folder / f"{split}_{task}.txt" for task in settings.tasks for split in ("train", "dev", "test")]
    return _TABLE_COPIES * sum(path.stat().st_size for path in paths if path.is_file())
