#!/usr/bin/env python
"""Measures the speed of operators and backbones beside other ways to compute the same.

All rows of a case run in turns, so that a disturbance of the machine meets all of them. With one thread, the default
on the CPU, times are those that the process itself used.
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
from piip.errors import ConfigError, DataError, run_cli

EXAMPLES = """
examples:
  %(prog)s ops                                 SKA at all shapes of LSNet
  %(prog)s ops --quick --output new.jsonl --compare old.jsonl
                                               for continuous integration: a minute; exits with 1 if a ratio fell
  %(prog)s backbones --compile --only lsnet_t --only B8
                                               one LSNet and its peers
"""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> int:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=["ops", "backbones"], help="what to measure")
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="only cases with this in their names; repeatable, all must be"
    )
    parser.add_argument("--quick", action="store_true", help="few cases, for continuous integration")
    parser.add_argument("--compile", action="store_true", help="backbones: also through torch.compile, a minute each")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every row (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="append the rows to this file of JSON lines")
    parser.add_argument("--compare", metavar="FILE", help="exit with 1 if a ratio is 10 %% below this file's")
    args = parser.parse_args()

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; leave it out to measure the CPU.")
    torch.set_num_threads(args.threads)
    settings = Settings(args.device, DTYPES[args.dtype], args.rounds, args.seconds, args.compile)
    old = read(args.compare) if args.compare else []

    rows: list[Row] = []
    for case in tqdm(_cases(args.suite, args.quick, args.only or []), unit="case", disable=None):
        measured = case.measure(settings)
        tqdm.write(_as_text(measured) + "\n")
        rows += measured
        if args.output:
            append(args.output, measured)
    if args.compare and not {row.key for row in old} & {row.key for row in rows}:
        raise DataError(f"{args.compare} has none of these rows at this device, dtype and number of threads.")
    worse = compare(old, rows)
    for line in worse:
        print(f"slower than in {args.compare}: {line}", file=sys.stderr)
    return 1 if worse else 0


def _cases(suite: str, quick: bool, words: list[str]) -> list:
    # timm's models take a while to import.
    if suite == "ops":
        from piip.benchmark.ops import CASES
    else:
        from piip.benchmark.backbones import CASES
    cases = [case for case in CASES if not quick or case.quick]
    chosen = [case for case in cases if all(word in case.name for word in words)]
    if not chosen:
        names = [case.name for case in cases]
        raise ConfigError(f"no case has {' and '.join(map(repr, words))} in its name; there are {', '.join(names)}.")
    return chosen


def _as_text(rows: list[Row]) -> str:
    table = [
        {
            rows[0].case: row.name,
            "ms": row.ms,
            "min": row.min_ms,
            "+-": f"{row.spread:.0%}",
            f"x {rows[0].name}": row.ratio,
            **row.numbers,
        }
        for row in rows
    ]
    return tabulate(table, headers="keys", floatfmt=".3g")


if __name__ == "__main__":
    run_cli(main)
