#!/usr/bin/env python
"""Measures the speed of operators, backbones and detectors beside other ways to compute the same.

All rows of a case run in turns, so that a disturbance of the machine meets all of them. With one thread, the default
on the CPU, times are those that the process itself used. A case that fails is named on stderr, the others are measured,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys

from piip.env import exit_without_detectron2

exit_without_detectron2()

import torch
from tabulate import tabulate
from tqdm import tqdm

from piip.benchmark import Row, Settings, append, compare, read
from piip.benchmark.suites import SUITES, cases
from piip.errors import ConfigError, DataError, run_cli

EXAMPLES = """
examples:
  %(prog)s ops                                 operators at the shapes of LSNet and PIIP
  %(prog)s all --quick --compare docs/performance_cpu.jsonl
                                               for continuous integration: a minute; exits with 1 if a ratio fell
  %(prog)s backbones --compile --only lsnet_t --only B8
                                               one LSNet and its peers
  %(prog)s compare old.jsonl new.jsonl         what became slower or faster; exits with 1 if something became slower
  %(prog)s report docs/performance_cpu.jsonl   writes docs/performance.md and its plot
"""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> int:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for suite in (*SUITES, "all"):
        shown = SUITES[suite][0] if suite in SUITES else "all of these"
        _add_measuring(commands.add_parser(suite, help=shown, description=f"Measures: {shown}."))
    sub = commands.add_parser("compare", help="ratios of two files that --output wrote")
    sub.add_argument("old", metavar="OLD")
    sub.add_argument("new", metavar="NEW")
    sub = commands.add_parser("report", help="a page of Markdown and a plot from files that --output wrote")
    sub.add_argument("files", nargs="+", metavar="FILE")
    sub.add_argument("--page", default="docs/performance.md", help="what to write (default: %(default)s)")
    args = parser.parse_args()

    if args.command == "compare":
        return _compare(args.old, read(args.old), read(args.new))
    if args.command == "report":
        from piip.benchmark.report import write_report

        write_report([row for file in args.files for row in read(file)], args.page)
        return 0
    return _measure(args)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="only cases with this in their names; repeatable, all must be"
    )
    parser.add_argument("--quick", action="store_true", help="few cases, for continuous integration")
    parser.add_argument("--compile", action="store_true", help="backbones: also through torch.compile, a minute each")
    parser.add_argument("--rounds", type=int, help="turns of every row, at most (default: 7, with --quick 3)")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="append the rows to this file of JSON lines")
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="exit with 1 if a ratio is below this file's by 10 %% and by more than it varies",
    )


def _measure(args: argparse.Namespace) -> int:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; leave it out to measure the CPU.")
    args.rounds = (3 if args.quick else 7) if args.rounds is None else args.rounds
    for name in ("rounds", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: give at least 1.")
    if not 0 < args.seconds < 3600:
        raise ConfigError(f"--seconds {args.seconds}: give more than 0, and less than an hour.")
    torch.set_num_threads(args.threads)
    # float32 means float32: TensorFloat-32 keeps 10 bits of it, too few for the comparison of outputs.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    settings = Settings(args.device, DTYPES[args.dtype], args.rounds, args.seconds, args.compile)
    old = read(args.compare) if args.compare else []

    rows: list[Row] = []
    failed = False
    suites = list(SUITES) if args.command == "all" else [args.command]
    for case in tqdm(cases(suites, args.quick, args.only or [], args.device), unit="case", disable=None):
        try:
            measured = case.measure(settings)
        except (ArithmeticError, RuntimeError) as error:  # such as a wrong output, or too little memory
            tqdm.write(f"{case.name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
            continue
        tqdm.write(_as_text(measured) + "\n")
        rows += measured
        if args.output:
            append(args.output, measured)
    if args.compare and (rows or not failed):
        failed = bool(_compare(args.compare, old, rows)) or failed
    return int(failed)


def _compare(name: str, old: list[Row], new: list[Row]) -> int:
    try:
        slower, faster = compare(old, new)
    except DataError as error:
        raise DataError(f"{name} cannot be compared with: {error}") from error
    for line in faster:
        print(f"faster than in {name}: {line}")
    for line in slower:
        print(f"slower than in {name}: {line}", file=sys.stderr)
    return 1 if slower else 0


def _as_text(rows: list[Row]) -> str:
    table = []
    for row in rows:
        times = {"ms": row.ms, "min": row.min_ms, "+-": f"{row.spread:.0%}", f"x {rows[0].name}": row.ratio}
        floor = {} if row.share_of_floor is None else {"of floor": f"{row.share_of_floor:.0%}"}
        table.append({rows[0].case: row.name, **(times if row.ms else {}), **floor, **row.numbers})
    return tabulate(table, headers="keys", floatfmt=".3g")


if __name__ == "__main__":
    run_cli(main)
