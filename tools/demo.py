#!/usr/bin/env python
"""Detects objects in pictures and videos with the model of a config, and writes them annotated.

python tools/demo.py --config-file CONFIG --checkpoint FILE --input photos/ clip.mp4 --output out
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from piip.env import exit_without_detectron2

exit_without_detectron2()

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from piip.checkpoint.files import write_atomically
from piip.engine.config import load_config
from piip.engine.predictor import LazyPredictor
from piip.errors import ConfigError, DataError, run_cli
from piip.visualization.draw import class_name, draw_instances
from piip.visualization.inputs import SAMPLES, Source, find_sources, output_paths, read_picture
from piip.visualization.video import annotate_video, require_opencv

ENLARGED_SIDE = 480  # pixels of the shorter side; pictures of less than half of it are enlarged


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="path of a config, or name of a packaged one")
    parser.add_argument("--checkpoint", help="file or address of weights; by default train.init_checkpoint")
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="NAME",
        help="pictures, videos, folders, quoted patterns, or skimage:NAME for a photograph of scikit-image",
    )  # fmt: skip
    parser.add_argument("--samples", action="store_true", help=f"take scikit-image's {', '.join(SAMPLES)}")
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="folder of the annotated pictures")
    parser.add_argument("--json", action="store_true", help="write DIR/predictions.json, like COCO's results")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out detections below (default 0.5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default train.device of the config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config; put them last")
    args = parser.parse_intermixed_args(argv)
    # A list of inputs swallows what follows it.
    args.overrides += [name for name in args.input if "=" in name and not Path(name).exists()]
    args.input = [name for name in args.input if name not in args.overrides]
    return args


class Demo:
    """Predicts, draws, counts and, where a JSON file is wanted, keeps its records."""

    def __init__(self, predictor: LazyPredictor, keep_records: bool) -> None:
        self.predictor = predictor
        ids = predictor.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        self.category_ids = {contiguous: category_id for category_id, contiguous in ids.items()}
        self.keep_records = keep_records
        self.records: list[dict[str, Any]] = []
        self.pictures = 0
        self.objects = 0
        self.seconds = 0.0

    def annotate(self, image: np.ndarray, name: str, **where: int) -> tuple[np.ndarray, Instances]:
        """The picture with what was found in it; ``where`` goes into the records."""
        start = time.perf_counter()
        output = self.predictor(image)
        if "instances" not in output:
            raise ConfigError(f"the model predicts {', '.join(output)}, and the demo draws instances only.")
        instances = output["instances"].to("cpu")
        self.seconds += time.perf_counter() - start
        if self.keep_records:
            self._record(instances, {"file_name": name, **where})
        self.pictures += 1
        self.objects += len(instances)
        # Labels would cover most of a small picture.
        shorter_side = ENLARGED_SIDE if min(image.shape[:2]) < ENLARGED_SIDE // 2 else 0
        return draw_instances(image, instances, self.predictor.metadata, shorter_side), instances

    def _record(self, instances: Instances, where: dict[str, Any]) -> None:
        for record in instances_to_coco_json(instances, self.pictures):
            category = record["category_id"]
            record["category_id"] = self.category_ids.get(category, category)
            record["category"] = class_name(self.predictor.metadata, category)
            self.records.append({**where, **record})

    def run(self, source: Source, target: Path) -> str:
        """Handles one input and says what was found."""
        if source.is_video:
            counts: Counter[int] = Counter()

            def annotate(frame: np.ndarray, number: int) -> np.ndarray:
                picture, instances = self.annotate(frame, source.name, frame=number)
                counts.update(instances.pred_classes.tolist())
                return picture

            frames = annotate_video(source.path, target, annotate)
            return f"{frames} frames, {describe(counts, self.predictor.metadata)}"
        image = read_picture(source.path)
        picture, instances = self.annotate(image, source.name)
        kind = "PNG" if target.suffix == ".png" else "JPEG"
        write_atomically(target, lambda f: Image.fromarray(picture).save(f, kind, quality=95))
        found = describe(Counter(instances.pred_classes.tolist()), self.predictor.metadata)
        return f"{image.shape[1]}x{image.shape[0]}, {found}"


def describe(counts: Counter[int], metadata: Metadata) -> str:
    """Such as "3 objects (2 cat, 1 dog)"."""
    total = sum(counts.values())
    classes = ", ".join(f"{n} {class_name(metadata, c)}" for c, n in counts.most_common())
    return f"{total} object{'s' * (total != 1)}" + (f" ({classes})" if classes else "")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    sources = find_sources([*args.input, *(f"skimage:{name}" for name in SAMPLES if args.samples)])
    if not sources:
        raise DataError("there is nothing to look at; name --input, or --samples for bundled photographs.")
    if any(source.is_video for source in sources):
        require_opencv()
    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--output {args.output!r} is a file; name a folder.")
    cfg = load_config(args.config_file, args.overrides)
    predictor = LazyPredictor(cfg, args.checkpoint, device=args.device, score_threshold=args.score_threshold)
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(predictor, keep_records=args.json)

    failed = 0
    start = time.perf_counter()
    for number, (source, target) in enumerate(zip(sources, output_paths(sources, folder), strict=True), 1):
        place = f"[{number}/{len(sources)}]"
        try:
            print(f"{place} {source.name}: {demo.run(source, target)} -> {target}", flush=True)
        except DataError as error:
            failed += 1
            print(f"{place} warning: skipped, {error}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    if args.json:
        path = folder / "predictions.json"
        write_atomically(path, lambda f: f.write(json.dumps(demo.records).encode()))
        print(f"{len(demo.records)} records -> {path}")
    print(
        f"{demo.pictures} pictures, {demo.objects} objects, {failed} of {len(sources)} inputs failed; "
        f"{demo.pictures / seconds:.2f} img/s in all, {demo.pictures / max(demo.seconds, 1e-9):.2f} img/s predicting "
        f"on {predictor.device}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
