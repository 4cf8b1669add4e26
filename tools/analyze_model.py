#!/usr/bin/env python
"""Prints what a model costs, part by part: parameters, multiply-adds, activations; truly and as the papers count.

With --sizing, what its training takes on many GPUs: memory, communication, scaling.

Models are counted on meta tensors: nothing is downloaded, and weights take no memory.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from piip.env import exit_without_detectron2

exit_without_detectron2()

from piip.analysis import analyze, build_on_meta, published_cost, report
from piip.analysis.sizing import Assumptions, measure
from piip.analysis.sizing_report import as_markdown
from piip.engine.config import load_config
from piip.engine.run_dir import write_json
from piip.errors import ConfigError, run_cli
from piip.model_zoo import table
from piip.model_zoo.zoo import published_row

EXAMPLES = """
examples:
  %(prog)s --config-file COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py
  %(prog)s --config-file my_config.py --input-size 800 1344 model.backbone.bottom_up.interaction_indexes=6
  %(prog)s --config-file my_config.py --parts backbone.bottom_up --json cost.json
  %(prog)s --zoo          recounts the published models; exits with 1 where a published number is not reproduced
  %(prog)s --sizing > docs/sizing.md
  %(prog)s --sizing my_config.py --nodes 1 4 --assume gpus_per_node=4 peak_flops=312e12
"""

# Their sizing is in docs/sizing.md.
SIZED = [
    f"COCO-InstanceSegmentation/mask_rcnn_piip_{n}_1x"
    for n in ("tsb_1568_1120_672", "sbl_1568_1120_672", "h6b_1024_512")
]
NODES = [1, 2, 4, 8, 16, 32, 64]


def main() -> int:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="NAME", help="name of a packaged config, or a file")
    what.add_argument("--zoo", action="store_true", help="count all published models and compare")
    what.add_argument(
        "--sizing",
        nargs="*",
        metavar="CONFIG",
        help="what trainings of these PIIP detectors take on several nodes, as Markdown; default: as in docs/sizing.md",
    )
    parser.add_argument("--nodes", type=int, nargs="+", metavar="N", help="with --sizing; default: 1 to 64")
    parser.add_argument(
        "--assume", nargs="+", metavar="NAME=VALUE", help="with --sizing: what the cluster is like, see docs/sizing.md"
    )
    parser.add_argument(
        "--input-size", type=int, nargs=2, metavar=("H", "W"), help="pixels; default: the model's highest resolution"
    )
    parser.add_argument(
        "--parts", action="append", metavar="PREFIX", help="only parts whose names start so; can be given several times"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args()
    if args.zoo and (args.input_size or args.parts or args.opts):
        parser.error("--zoo counts the published models as they are: give it no other option than --json")
    if args.sizing is not None and (args.input_size or args.parts or args.opts or args.json):
        parser.error("--sizing takes no other options than --nodes and --assume")
    if args.sizing is None and (args.nodes or args.assume):
        parser.error("--nodes and --assume belong to --sizing")
    if args.zoo:
        return _zoo(args.json)
    if args.sizing is not None:
        return _sizing(args.sizing or SIZED, args.nodes or NODES, args.assume or [])

    cfg = load_config(args.config_file, args.opts)
    if cfg.get("model") is None:
        raise ConfigError(f"config {args.config_file!r} has no model to count.")
    model = build_on_meta(cfg.model)
    complexity = analyze(model, args.input_size)
    if args.parts:
        complexity = complexity.only(args.parts)
    try:
        by_papers = published_cost(model)
    except ConfigError as error:
        by_papers = None
        print(f"note: {error}", file=sys.stderr)
    # What was published holds for the model as it was published.
    row = None if any(o.lstrip("+").startswith("model.") for o in args.opts) else published_row(args.config_file)
    print(report.as_text(complexity, by_papers, row))
    if args.json:
        write_json(args.json, {"config": args.config_file, **report.as_data(complexity, by_papers, row)})
    return 0


def _sizing(configs: list[str], nodes: list[int], assumed: list[str]) -> int:
    if min(nodes) < 1:
        raise ConfigError(f"--nodes {min(nodes)}: there must be at least 1.")
    given = Assumptions.parse(assumed)
    models = []
    for config in configs:
        print(f"counting {config}", file=sys.stderr)
        models.append(measure(config))
    command = shlex.join(["python", "tools/analyze_model.py", *sys.argv[1:]])
    print(as_markdown(models, sorted(set(nodes)), given, command), end="")
    return 0


def _zoo(json_file: str | None) -> int:
    measured = table.measure_zoo(lambda config: print(f"counting {config}", file=sys.stderr))
    print(table.as_text(measured))
    if json_file:
        write_json(json_file, table.as_data(measured))
    wrong, explained = table.disagreements(measured)
    others = "All other" if explained else "All"
    print("\n".join([*explained, *wrong]))
    if not wrong:
        print(f"{others} published numbers are reproduced to the precision they are printed with.")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_cli(main)
