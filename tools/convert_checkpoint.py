#!/usr/bin/env python
"""Converts a checkpoint to our names, or back to the layout of the released PIIP code, and says what it did.

The format of the input is found out by itself. Without --config, so is the packaged config that it belongs to.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping

from piip.env import exit_without_detectron2

exit_without_detectron2()

from torch import Tensor

from piip.checkpoint.convert import DTYPES, check_target, to_official, write_weights
from piip.checkpoint.describe import describe
from piip.checkpoint.load import match_weights
from piip.checkpoint.weights import read_weights
from piip.engine.config import load_config
from piip.errors import CheckpointError, ConfigError, run_cli
from piip.model_zoo.recognize import fits, matching_configs
from piip.modeling.without_weights import build_without_weights

EXAMPLES = """
examples:
  %(prog)s piip://detection/mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16.pth --to tsb.safetensors
  %(prog)s work/model-00001-of-00003.safetensors.index.json --to h6b.safetensors --dtype bfloat16
  %(prog)s output/model_0000999 --to one.pth --config my_config.py
  %(prog)s output/model_best.pth --to released.pth --layout official --config my_config.py model.roi_heads.num_classes=3
"""


def main() -> int:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help="file, folder of a checkpoint in parts, folder or index of several files, or address",
    )
    parser.add_argument("--to", metavar="OUT", required=True, help="file to write: .safetensors or .pth")
    parser.add_argument("--config", metavar="NAME", help="name of a packaged config, or a file; default: found out")
    parser.add_argument("--layout", choices=("piip", "official"), default="piip", help="names to write; default: piip")
    parser.add_argument("--dtype", choices=list(DTYPES), default="keep", help="type of the numbers; default: keep")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args()
    if args.opts and not args.config:
        parser.error("overrides change a config: give it with --config")

    check_target(args.to)
    tensors = read_weights(args.source)
    print(f"read     {args.source}\n         {describe(tensors)}; {_size(tensors)}")
    config = args.config or _find_config(args.source, tensors)
    cfg = load_config(config, args.opts)
    if cfg.get("model") is None:
        raise ConfigError(f"config {config!r} has no model.")
    model = build_without_weights(cfg.model)
    try:
        ours, report = match_weights(model, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {args.source!r} and config {config!r}: {error}") from error
    print(f"config   {config}\ntensors  {report}")
    if not fits(model, report):
        raise CheckpointError(
            f"checkpoint {args.source!r} does not hold exactly the tensors of config {config!r}, nor of its backbone; "
            "give its own --config, and what differs as key=value."
        )
    written = to_official(model, ours) if args.layout == "official" else ours
    metadata = {"format": "piip" if args.layout == "piip" else "piip-official", "config": config, "source": args.source}
    write_weights(args.to, written, args.dtype, metadata)
    added = f", {added} of them added with neutral values" if (added := len(written) - len(ours)) > 0 else ""
    size = f"{_size(read_weights(args.to))}, {os.path.getsize(args.to) / 1e6:.1f} MB"
    print(f"wrote    {args.to}\n         {size}{added}")
    return 0


def _find_config(source: str, tensors: Mapping[str, Tensor]) -> str:
    print("note: looking for its config among all packaged ones; --config NAME saves that time", file=sys.stderr)
    fitting = matching_configs(tensors)
    if not fitting:
        raise CheckpointError(
            f"checkpoint {source!r} holds {describe(tensors)}, which no packaged config has exactly; name its config "
            "with --config, and what differs as key=value."
        )
    if len(fitting) > 1:
        print(f"note: {len(fitting)} configs have these tensors, which makes no difference here:", file=sys.stderr)
        print("\n".join(f"  {name}" for name in fitting), file=sys.stderr)
    return fitting[0]


def _size(tensors: Mapping[str, Tensor]) -> str:
    parameters = sum(tensor.numel() for tensor in tensors.values())
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    types = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{len(tensors)} tensors ({types}), {parameters / 1e6:.2f} M numbers"


if __name__ == "__main__":
    run_cli(main)
