"""Commands and their arguments; the work is done elsewhere."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

VERSION = "0.1.0"
COMMANDS = ("run", "plan", "check", "validate", "score", "report", "verify", "ablate", "bench")
EPILOG = """A setting is given as key=value, e.g. data.dir=data train.lr=2e-4 QC.negatives.enabled=false;
all of them stand in src/analyticup/settings/schema.py.
Exit codes: 0 done, 1 a check failed, 2 wrong input or settings."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run.sh",
        description="Multilingual product-search relevance: from the competition's files to the submission.",
        epilog=f"Without a command, `run` is meant. `./run.sh test` runs the tests. {EPILOG}",
    )
    parser.add_argument("--version", action="version", version=f"analyticup {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, what in (
        ("run", "run every stage that is not cached and write submissions/<name>"),
        ("plan", "list every stage: run or cached, why, where; creates nothing"),
        ("check", "preflight: settings, data, model, disk, memory, device; all findings"),
    ):
        command = commands.add_parser(name, help=what, description=what, epilog=EPILOG)
        command.add_argument("--config", type=Path, default=None, help="YAML file (default: configs/sample.yaml)")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the config")
    ablate = commands.add_parser("ablate", help="the rows of the paper's ablation, with intervals", epilog=EPILOG)
    ablate.add_argument("--config", type=Path, default=None, help="YAML file (default: configs/sample.yaml)")
    ablate.add_argument(
        "--table",
        choices=("paper", "noise"),
        default="paper",
        help="paper: its Table 3 (default); noise: filters against turned labels",
    )
    ablate.add_argument("--seeds", type=int, default=1, metavar="N", help="train every row N times (default: 1)")
    ablate.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the config")
    bench = commands.add_parser("bench", help="speed and memory beside the usual tools, in one table", epilog=EPILOG)
    bench.add_argument("--config", type=Path, default=None, help="YAML file (default: configs/small.yaml)")
    bench.add_argument("--only", default=None, metavar="PARTS", help="of training,scoring,matmul,data (default: all)")
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="measure each variant N times (default: 3)")
    bench.add_argument("--train-rows", type=int, default=128, metavar="N", help="rows to a training round")
    bench.add_argument("--score-rows", type=int, default=256, metavar="N", help="rows to a scoring round")
    bench.add_argument("--data-rows", default=None, metavar="N,N", help="generated rows (default: 10000,100000,340000)")
    bench.add_argument("--data-rounds", type=int, default=1, metavar="N", help="rounds of the data part (default: 1)")
    bench.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the config")
    validate = commands.add_parser("validate", help="check a submission file against its input, line by line")
    validate.add_argument("--task", required=True, choices=("QC", "QI"))
    validate.add_argument("--input", required=True, type=Path, help="the dev or test file")
    validate.add_argument("--submission", required=True, type=Path)
    score = commands.add_parser("score", help="F1 per language of a submission file, where labels are known")
    score.add_argument("--input", required=True, type=Path, help="the dev or test file")
    score.add_argument("--submission", required=True, type=Path)
    score.add_argument("--labels", required=True, type=Path, help='JSON lines {"id": 1, "label": 0}')
    score.add_argument("--scores", type=Path, help="scores_*.parquet, for ROC-AUC and average precision")
    report = commands.add_parser("report", help="show the report of a finished run again")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="e.g. submissions/sample")
    verify = commands.add_parser("verify", help="check a finished run: files, inputs, settings, stages, figures")
    verify.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="e.g. submissions/sample")
    verify.add_argument(
        "overrides", nargs="*", metavar="key=value", help="other places: paths.artifacts, paths.cache, data.dir"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Exit code of one command line."""
    if not arguments or (arguments[0] not in COMMANDS and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["run", *arguments]
    options = _parse(arguments)
    if options.command in ("plan", "check", "verify"):
        # These promise to create nothing, not even byte code.
        sys.dont_write_bytecode = True
    from analyticup import commands
    from analyticup.errors import CheckFailed, UserError, machine_trouble

    try:
        return getattr(commands, options.command)(options)
    except UserError as error:
        print(f"error: {error}".replace("\n", "\nerror: "), file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        # A full disk, a folder without write access, a model hub out of reach: the machine's fault, not the kit's.
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        print(f"error: {trouble}", file=sys.stderr)
        return 2


def _parse(arguments: list[str]) -> argparse.Namespace:
    """argparse takes positionals in one stretch only; settings may stand before and after an option."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _show_what_the_terminal_can() -> None:
    """A query in Thai, or a ±, must not end a run where the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    _show_what_the_terminal_can()
    sys.exit(main(sys.argv[1:]))
