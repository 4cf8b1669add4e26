#!/usr/bin/env python
"""Writes the table of MODEL_ZOO.md from the published numbers and from what we count."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from piip.env import exit_without_detectron2

exit_without_detectron2()

from piip.checkpoint.files import write_atomically
from piip.errors import run_cli
from piip.model_zoo.table import insert_table, markdown, measure_zoo

DOCUMENT = Path(__file__).resolve().parent.parent / "MODEL_ZOO.md"


def main() -> int:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the file is out of date")
    args = parser.parse_args()
    old = DOCUMENT.read_text("utf-8")
    new = insert_table(old, markdown(measure_zoo(lambda config: print(config, file=sys.stderr))))
    if args.check:
        return int(new != old)
    write_atomically(DOCUMENT, lambda f: f.write(new.encode()))
    return 0


if __name__ == "__main__":
    run_cli(main)
