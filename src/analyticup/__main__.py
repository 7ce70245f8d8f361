"""The commands: their arguments, and the function that does the work of each, imported only when it is called."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from analyticup.engine.signals import end_by

VERSION = "0.1.0"
EPILOG = """A setting is given as key=value, e.g. data.dir=data train.lr=2e-4 QC.negatives.enabled=false;
src/analyticup/settings/schema.py has them all. Exit codes: 0 done, 1 a check failed, 2 wrong input or settings."""
Parser = argparse.ArgumentParser


def _settings(command: Parser, default: str = "sample.yaml") -> None:
    command.add_argument("--config", type=Path, default=None, help=f"YAML file (default: configs/{default})")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the config")


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError
    return numbers


def _pieces(text: str) -> dict[str, int]:
    names, _, counts = zip(*(part.partition("=") for part in text.split(",")), strict=True)
    return dict(zip(names, _numbers(",".join(counts)), strict=True))


def _plan(command: Parser) -> None:
    _settings(command)
    simulated = "instead: how long the run would take on so many GPUs (estimate), e.g. 1,2,8"
    command.add_argument("--gpus", type=_numbers, default=None, metavar="N,N", help=simulated)
    cut = "with --gpus: stages whose work would be cut into so many pieces, e.g. filter_model=8,predict=4"
    command.add_argument("--split", type=_pieces, default={}, metavar="STAGE=N,..", help=cut)


def _ablate(command: Parser) -> None:
    _settings(command)
    table = "paper: its Table 3 (default); noise: filters against flipped labels"
    command.add_argument("--table", choices=("paper", "noise"), default="paper", help=table)
    command.add_argument("--seeds", type=_positive, default=1, metavar="N", help="train every row N times (default: 1)")


def _compare(command: Parser) -> None:
    several = "YAML files, the first is what the others are compared with; and key=value, settings on top of each"
    command.add_argument("configs", nargs="+", metavar="CONFIG", help=several)
    command.add_argument(
        "--seeds", type=_positive, default=1, metavar="N", help="train every config N times (default: 1)"
    )
    # What argparse leaves over, after an option.
    command.set_defaults(overrides=[])


def _bench(command: Parser) -> None:
    _settings(command, "small.yaml")
    parts = "of training,scoring,embedding,matmul,pipeline (default: all these); or gpu, alone"
    command.add_argument("--only", default=None, metavar="PARTS", help=parts)
    tiny = "with --only gpu: a model that a CPU runs in a moment"
    command.add_argument("--tiny", action="store_true", help=tiny)
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="measure each variant N times (default: 3)")
    command.add_argument("--train-rows", type=int, default=128, metavar="N", help="rows in a training round")
    command.add_argument("--score-rows", type=int, default=256, metavar="N", help="rows in a scoring round")
    embedded = "rows whose texts are embedded in a round"
    command.add_argument("--embed-rows", type=int, default=512, metavar="N", help=embedded)
    shares = "shares of the official size for the pipeline part (default: 0.01,0.1,1)"
    command.add_argument("--shares", default=None, metavar="S,S", help=shares)


def _validate(command: Parser) -> None:
    command.add_argument("--task", required=True, choices=("QC", "QI"))
    command.add_argument("--input", required=True, type=Path, help="the dev or test file")
    command.add_argument("--submission", required=True, type=Path)


def _score(command: Parser) -> None:
    command.add_argument("--input", required=True, type=Path, help="the dev or test file")
    command.add_argument("--submission", required=True, type=Path)
    command.add_argument("--labels", required=True, type=Path, help='JSON lines {"id": 1, "label": 0}')
    command.add_argument("--scores", type=Path, help="scores_*.parquet, for ROC-AUC and average precision")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _review(command: Parser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    out = actions.add_parser("export", help="write a sheet for reviewers, for a spreadsheet or as JSON lines")
    back = actions.add_parser("import", help="check a filled-in sheet and store its decisions")
    out.add_argument("run", type=Path, metavar="RUN", help="e.g. submissions/sample")
    out.add_argument("--out", type=Path, help=".csv or .jsonl (default: sheet_TASK.csv in the folder of decisions)")
    model = actions.add_parser("simulate", help="what looks are worth by simulated reviewers, where truth is known")
    model.add_argument("run", type=Path, metavar="RUN", help="e.g. submissions/sample")
    model.add_argument(
        "--step", type=_positive, default=100, metavar="N", help="looks from line to line (default: 100)"
    )
    folders = "also write what they decide into folders in here, for runs with filter.decisions=FOLDER"
    model.add_argument("--out", type=Path, metavar="FOLDER", help=folders)
    back.add_argument("file", type=Path, metavar="FILE")
    back.add_argument("--run", type=Path, help="default: the run that the sheet names, in submissions/")
    command.add_argument("--run", type=Path, default=Path("submissions/sample"), help="default: submissions/sample")
    for asked in (command, out, model):
        asked.add_argument("--task", choices=("QC", "QI"), default=None, help="default: the run's first task")
        asked.add_argument("--top", type=_positive, default=200, metavar="N", help="rows to look at (default: 200)")
    for asked in (command, out, back, model):
        asked.add_argument("--reviewer", default=None, metavar="NAME", help="default: your user name")


def _run_dir(command: Parser) -> None:
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="e.g. submissions/sample")


def _report(command: Parser) -> None:
    several = "e.g. submissions/sample; of several, the first is what the others are compared with"
    command.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help=several)
    where = "file for the page of several (default: next to the first run's folder)"
    command.add_argument("--out", type=Path, metavar="FILE", help=where)


def _verify(command: Parser) -> None:
    _run_dir(command)
    places = "other places: paths.artifacts, paths.cache, data.dir"
    command.add_argument("overrides", nargs="*", metavar="key=value", help=places)


def _bundle(command: Parser) -> None:
    _run_dir(command)
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: RUN_DIR-bundle)")
    form = "instead a code submission in the competition's form, as a zip"
    command.add_argument("--competition", action="store_true", help=form)
    what = "bundle.rows, bundle.adapters; other places as for verify"
    command.add_argument("overrides", nargs="*", metavar="key=value", help=what)


def _regenerate(command: Parser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder or zip that `bundle` wrote")
    depths = ("decide", "predict", "train")
    which = "how much is done again (default: the deepest that the given parts allow)"
    command.add_argument("--depth", choices=depths, default=None, help=which)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="data.dir; other settings of that depth")


def _push(command: Parser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder or zip that `bundle` wrote")
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository of models on the hub")
    command.add_argument("--yes", action="store_true", help="send the files; without it they are only listed")
    command.add_argument("--public", action="store_true", help="for everybody to read (default: private)")


def _merge(command: Parser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder or zip that `bundle` wrote")
    command.add_argument("--adapter", required=True, metavar="NAME", help="one of its stages, e.g. train-QC-fold0")
    command.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where to")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="model.backbone, paths.cache")


@dataclass(frozen=True)
class Command:
    """`run` is "module:function": it takes the parsed arguments and gives the exit code. One that `writes` nothing
    promises to create no file, not even byte code."""

    help: str
    run: str
    arguments: Callable[[Parser], None]
    writes: bool = True


# A new command is one entry here and its function.
COMMANDS = {
    "run": Command(
        "run every stage that is not cached and write submissions/<name>", "analyticup.commands:run", _settings
    ),
    "plan": Command(
        "list every stage: run or cached, why, where; creates nothing",
        "analyticup.commands:plan",
        _plan,
        writes=False,
    ),
    "check": Command(
        "preflight: settings, data, model, disk, memory, device; all findings",
        "analyticup.commands:check",
        _settings,
        writes=False,
    ),
    "ablate": Command(
        "the rows of the paper's ablation, with intervals", "analyticup.experiments.ablation.run:ablate", _ablate
    ),
    "compare": Command(
        "any configs on the same data in one table, with differences to the first",
        "analyticup.experiments.compare.command:compare",
        _compare,
    ),
    "bench": Command(
        "speed and memory next to the usual tools, in one table", "analyticup.experiments.bench.command:bench", _bench
    ),
    "validate": Command(
        "check a submission file against its input, line by line", "analyticup.commands:validate", _validate
    ),
    "score": Command(
        "F1 per language of a submission file, where labels are known", "analyticup.commands:score", _score
    ),
    "report": Command(
        "show the report of a finished run again; of several, side by side", "analyticup.commands:report", _report
    ),
    "review": Command(
        "look at doubtful training rows on the terminal, or by a sheet",
        "analyticup.review.command:review",
        _review,
    ),
    "verify": Command(
        "check a finished run: files, inputs, settings, stages, figures",
        "analyticup.commands:verify",
        _verify,
        writes=False,
    ),
    "bundle": Command(
        "pack a finished run for others: a folder and a zip", "analyticup.sharing.command:bundle", _bundle
    ),
    "regenerate": Command(
        "make the submission again from a bundle, and compare",
        "analyticup.sharing.command:regenerate_bundle",
        _regenerate,
    ),
    "merge": Command(
        "write a bundle's adapter and the base model as one model", "analyticup.sharing.merge:merge", _merge
    ),
    "push": Command("send a bundle to the hub; without --yes a dry run", "analyticup.sharing.command:push", _push),
}


def make_parser() -> Parser:
    parser = Parser(
        prog="./run.sh",
        description="Multilingual product-search relevance: from the competition's files to the submission.",
        epilog=f"Without a command, `run` is meant. `./run.sh test` runs the tests. {EPILOG}",
    )
    parser.add_argument("--version", action="version", version=f"analyticup {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, description=command.help, epilog=EPILOG)
        command.arguments(own)
    return parser


def main(arguments: list[str]) -> int:
    """Exit code of one command line."""
    try:
        code = _run(arguments)
        # What cannot be written is found here, and not by Python at the exit.
        sys.stdout.flush()
        return code
    except BaseException as error:
        # Libraries turn an interruption into errors of their own, those in Rust while they are imported.
        if isinstance(error, KeyboardInterrupt) or _interruptions:
            _say("interrupted; finished stages are kept, the same command resumes from there")
            # Where it came inside of a text that Python runs, as those of dataclasses are, Python would end by SIGINT
            # and not with this code; the next text makes it forget that.
            exec("")
            return 130
        code = _code_of(error)
        if code is None:
            raise
        return code
    finally:
        _drop_what_nobody_reads()


def _run(arguments: list[str]) -> int:
    if not arguments or (arguments[0] not in COMMANDS and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["run", *arguments]
    options = _parse(arguments)
    command = COMMANDS[options.command]
    if not command.writes:
        sys.dont_write_bytecode = True
    _refuse_deleted_folder()
    module, _, function = command.run.partition(":")
    return int(getattr(import_module(module), function)(options))


def _code_of(error: BaseException) -> int | None:
    """Says what went wrong, and gives the exit code; None for an error of the kit itself."""
    from analyticup.errors import CheckFailed, UserError, machine_trouble

    if isinstance(error, UserError):
        _say(f"error: {error}".replace("\n", "\nerror: "))
        return 2
    if isinstance(error, CheckFailed):
        _say(f"failed: {error}")
        return 1
    if isinstance(error, BrokenPipeError):
        # `plan | head` has shown what was wanted.
        return 1
    # A full disk, a folder without write access, a model hub out of reach: the machine's fault, not the kit's.
    trouble = machine_trouble(error) if isinstance(error, Exception) else None
    if trouble is None:
        return None
    _say(f"error: {trouble}")
    return 2


def _refuse_deleted_folder() -> None:
    """Libraries look for the current folder, and end the process where there is none."""
    from analyticup.errors import UserError

    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted; change to one that is there and run again") from None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _drop_what_nobody_reads() -> None:
    """What is left for a stream that takes nothing more would fail once more at the exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parse(arguments: list[str]) -> argparse.Namespace:
    """argparse takes positionals in one stretch only; settings may be before and after an option."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def open_closed_streams() -> None:
    """Opens closed standard streams to nowhere: the next file would take the place of one, and get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def have_a_home() -> None:
    """A user without HOME and without a name has no home folder: libraries would end, or make a folder called ~."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/nonexistent"


def _show_what_the_terminal_can() -> None:
    """A query in Thai, or a ±, must not end a run where the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


# The signals that came.
_interruptions: list[int] = []


def _interrupt(number: int) -> NoReturn:
    _interruptions.append(number)
    raise KeyboardInterrupt


def heed_sigterm() -> None:
    """What batch systems and containers send first is an interruption as Ctrl-C is."""
    # A shell starts what it puts into the background deaf to Ctrl-C, and so it stays.
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    end_by([signal.SIGTERM, *[signal.SIGINT] * hears], _interrupt)


if __name__ == "__main__":
    open_closed_streams()
    have_a_home()
    heed_sigterm()
    _show_what_the_terminal_can()
    sys.exit(main(sys.argv[1:]))
