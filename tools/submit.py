#!/usr/bin/env python
"""Sends trainings to a Slurm cluster; preempted, timed-out and crashed jobs go on by themselves."""

from __future__ import annotations

import sys

from piip.env import exit_without_detectron2

exit_without_detectron2()

from piip.errors import run_cli
from piip.slurm.cli import main

if __name__ == "__main__":
    run_cli(lambda: main(sys.argv[1:]))
