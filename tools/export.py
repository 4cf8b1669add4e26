#!/usr/bin/env python
"""Writes a model into a file that runs without this package: a torch.export program or an ONNX graph.

The file is kept only if it computes what the model does, to 1e-4 of the largest value.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from piip.env import exit_without_detectron2

exit_without_detectron2()

from piip.engine.config import load_config
from piip.engine.predictor import LazyPredictor
from piip.errors import run_cli
from piip.export import PARTS, SUFFIXES, export_model, network_of
from piip.export.export import check_output

EXAMPLES = """
examples:
  %(prog)s --config-file COCO-Detection/retinanet_lsnet_t_1x.py --checkpoint lsnet://lsnet_t_retinanet.pth \\
      --what model --dynamic --output retinanet.onnx
  %(prog)s --config-file ImageNet-Classification/lsnet_t_300ep.py --checkpoint lsnet://lsnet_t.pth \\
      --output lsnet_t.pt2
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="NAME", help="path of a config, or name of a packaged one"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="file or address of weights; by default train.init_checkpoint"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=f"{' or '.join('*' + s for s in SUFFIXES)}")
    parser.add_argument(
        "--what", choices=PARTS, default="backbone",
        help="the backbone with its FPN, of a classifier the logits (default), or a whole detector",
    )  # fmt: skip
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; by default the model's own")
    parser.add_argument("--dynamic", action="store_true", help="height and width may be other multiples of the stride")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides; put them last")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and does what it says."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    output = Path(args.output)
    check_output(output)
    predictor = LazyPredictor(load_config(args.config_file, args.opts), args.checkpoint, device="cpu")
    network = network_of(predictor.model, args.what)
    report = export_model(network, output, args.size, args.dynamic)
    print(f"image 1 x 3 x {'H x W' if args.dynamic else ' x '.join(map(str, args.size or network.size))}")
    for name, shape in report["outputs"].items():
        print(f"  {name:8} {' x '.join(map(str, shape))}")
    images = " and ".join(f"{h} x {w}" for h, w in report["checked"])
    compared = f", {report['detections']} detections" if "detections" in report else ""
    print(f"checked on {images}{compared}: error {report['error']:.1e} of the largest value")
    if report.get("detections") == 0:
        print("warning: nothing was detected in the noise that it was checked with", file=sys.stderr)
    print(f"{output} ({output.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    run_cli(main)
