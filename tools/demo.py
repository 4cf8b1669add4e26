#!/usr/bin/env python
"""Looks at pictures and videos with the model of a config, and writes them with what it found.

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
from PIL import Image

from piip.checkpoint.files import write_atomically
from piip.engine.config import load_config
from piip.engine.predictor import LazyPredictor
from piip.errors import DataError, run_cli
from piip.visualization.answers import Answers, answers_of
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
        self.keep_records = keep_records
        self.records: list[dict[str, Any]] = []
        self.pictures = 0
        self.seconds = 0.0
        self.answers: Answers | None = None
        self.counts: Counter[int] = Counter()  # over all inputs

    def annotate(self, image: np.ndarray, name: str, **where: int) -> tuple[np.ndarray, Counter[int]]:
        """The picture with what was found in it, and the counts of that; ``where`` goes into the records."""
        start = time.perf_counter()
        answers, answer = answers_of(self.predictor(image), self.predictor.metadata)
        counts = answers.count(answer)  # which waits for the GPU
        self.answers = answers
        self.counts.update(counts)
        self.seconds += time.perf_counter() - start
        if self.keep_records:
            self.records += [{"file_name": name, **where, **r} for r in answers.records(answer, self.pictures)]
        self.pictures += 1
        # Labels would cover most of a small picture.
        shorter_side = ENLARGED_SIDE if min(image.shape[:2]) < ENLARGED_SIDE // 2 else 0
        return answers.draw(image, answer, shorter_side), counts

    def run(self, source: Source, target: Path) -> str:
        """Handles one input and says what was found."""
        if source.is_video:
            total: Counter[int] = Counter()

            def annotate(frame: np.ndarray, number: int) -> np.ndarray:
                picture, counts = self.annotate(frame, source.name, frame=number)
                total.update(counts)
                return picture

            frames = annotate_video(source.path, target, annotate)
            return f"{frames} frames, {self.describe(total)}"
        image = read_picture(source.path)
        picture, counts = self.annotate(image, source.name)
        kind = "PNG" if target.suffix == ".png" else "JPEG"
        write_atomically(target, lambda f: Image.fromarray(picture).save(f, kind, quality=95))
        return f"{image.shape[1]}x{image.shape[0]}, {self.describe(counts)}"

    def describe(self, counts: Counter[int]) -> str:
        """Counts in the words of the model's task."""
        return self.answers.describe(counts) if self.answers else "nothing"


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
        f"{demo.pictures} pictures, {demo.describe(demo.counts)}, {failed} of {len(sources)} inputs failed; "
        f"{demo.pictures / seconds:.2f} img/s in all, {demo.pictures / max(demo.seconds, 1e-9):.2f} img/s predicting "
        f"on {predictor.device}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
