"""The end of a training: what came out, as a table, as ``summary.json`` and as pictures."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from tabulate import tabulate

from .run_dir import write_json

__all__ = ["write_summary"]

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
_FILES = (
    *(f"model_{which}{kind}" for which in ("final", "best") for kind in (".pth", "")),
    *("config.yaml", "metrics.json", "eval.json", "log.txt", "report"),
)


def write_summary(output_dir: str, facts: dict[str, Any], results: dict[str, Any]) -> None:
    """Logs a table of a finished training and writes ``summary.json``.

    Args:
        facts: name to value, in the order to be shown; ``seconds`` is shown as a duration.
        results: of the last evaluation.
    """
    root = Path(output_dir)
    files = [name for name in _FILES if (root / name).exists()]
    write_json(root / SUMMARY_FILE, {**facts, "results": results, "files": files})
    rows = []
    for name, value in facts.items():
        if value is None:
            continue
        if name == "seconds":
            name, value = "time", datetime.timedelta(seconds=int(value))
        rows.append((name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value))
    rows += [(k, f"{v:.2f}") for k, v in flatten_results_dict(results).items() if "-" not in k]
    rows.append((f"in {output_dir}", ", ".join(files)))
    logger.info("Training finished\n%s", tabulate(rows, tablefmt="github", disable_numparse=True))
