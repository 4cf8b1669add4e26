#!/usr/bin/env python
"""Trains and evaluates any LazyConfig, ours or Detectron2's; ``--help`` shows examples."""

from __future__ import annotations

from piip.env import exit_without_detectron2

exit_without_detectron2()

from detectron2.engine import default_argument_parser

from piip.engine.train import main
from piip.errors import run_cli

EXAMPLES = """
examples:
  train a packaged config; then once more after it was killed:
    %(prog)s --config-file quickstart/mask_rcnn_piip_digits.py train.output_dir=out
    %(prog)s --config-file quickstart/mask_rcnn_piip_digits.py --resume train.output_dir=out
  evaluate the best weights of that training, or a file:
    %(prog)s --config-file quickstart/mask_rcnn_piip_digits.py --eval-only train.output_dir=out
    %(prog)s --config-file my_config.py --eval-only train.init_checkpoint=model.pth
  8 GPUs, half precision, another batch size (the schedule follows):
    %(prog)s --config-file my_config.py --num-gpus 8 train.amp.enabled=True dataloader.train.total_batch_size=32
  two processes without a GPU, or one per GPU on several machines:
    torchrun --nproc-per-node 2 %(prog)s --config-file my_config.py

Overrides are key=value and must name existing keys; +key=value adds one. Without --resume, an earlier training in
train.output_dir is moved to <output_dir>/previous/<number>.
"""


def train_net() -> None:
    """Reads the command line and does what it says."""
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    main(parser.parse_args())


if __name__ == "__main__":
    run_cli(train_net)
