"""What PIIP promises, the accuracy of a single network at less computation, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from ..model_zoo.zoo import published
from .records import Row

__all__ = ["Comparison", "comparisons", "promise_table"]

_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_{}_1x.py"
_TEXT = """\
## PIIP beside a single ViT

What PIIP takes of the ViT that was measured in the same turns, both ours and fused, both with pyramid and FPN: below
100 % is less. "published" is the ratio of the computation that the paper tells; it leaves out the convolutions that
merge the branches and the feature pyramid. Those run on the finest grid, which is finer for PIIP, so counted as a whole
PIIP saves less than the paper says; on a CPU, Winograd's algorithm makes up for a part of that in time. AP is box AP of
Mask R-CNN as published. Images are square; COCO's are not, which is less for both sides.
"""


@dataclass(frozen=True)
class Comparison:
    """A PIIP and the ViT beside it.

    Attributes:
        piip, vit: their rows.
    """

    piip: Row
    vit: Row

    @property
    def published(self) -> tuple[dict[str, str], dict[str, str]]:
        """Their rows of the zoo's table, empty where they have none."""
        model = self.piip.case.split(" beside ")[0].removeprefix("PIIP-").lower()
        names = f"piip_{model.replace(' ', '_').replace('/', '_')}", self.vit.name.split(",")[0]
        configs = names[0], names[1].lower().replace("-", "_").replace(" ", "_")
        return tuple(published().get(_CONFIG.format(name), {}) for name in configs)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The fused PIIP of every case with the fused ViTs of ours."""
    for piip in rows:
        if piip.suite == "backbones" and piip.case.startswith("PIIP") and piip.name == "ours, fused":
            for vit in rows:
                same = vit.key[:2] == piip.key[:2] and vit.key[3:] == piip.key[3:]
                if same and vit.name.startswith("ViT") and vit.name.endswith(", fused"):
                    yield Comparison(piip, vit)


def promise_table(rows: Sequence[Row]) -> str:
    """The section of the page; empty without such rows of published models."""
    table = []
    pairs = list(comparisons(rows))
    several = len({pair.piip.key[3:] for pair in pairs}) > 1
    for pair in pairs:
        one, other = pair.published
        if not (one and other):
            continue
        about = pair.piip.environment
        where = f" ({about.get('device')}, {about.get('dtype')})" if several else ""
        ratios = {
            "published": float(one["flops_G"]) / float(other["flops_G"]),
            "GMACs": pair.piip.numbers["gmacs"] / pair.vit.numbers["gmacs"],
            "time": pair.vit.ratio / pair.piip.ratio,
            "peak memory": pair.piip.numbers["peak_mb"] / pair.vit.numbers["peak_mb"],
        }
        table.append(
            {
                "": f"{pair.piip.case.split(' beside ')[0]} / {pair.vit.name.split(',')[0]}{where}",
                "AP": f"{one['box_AP']} / {other['box_AP']}",
                **{name: f"{ratio:.0%}" for name, ratio in ratios.items()},
            }
        )
    return f"{_TEXT}\n{tabulate(table, headers='keys', tablefmt='github', disable_numparse=True)}\n" if table else ""
