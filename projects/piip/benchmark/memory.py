"""How many images fit on a GPU, on paper: from the sizes of parameters, results and saved activations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..analysis.activations import peak_bytes
from ..analysis.sizing import Assumptions, measure, plan
from ..model_zoo import get_config
from ..modeling.without_weights import build_on_meta
from .records import Row, environment
from .timing import Settings

__all__ = ["CASES", "GPUS", "MemoryCase", "images_that_fit"]

GPUS = (8, 16, 24, 48, 80)  # GB
# What is left for the rest: one block's activations while it is recomputed, scratch memory, the allocator's gaps.
USABLE = 0.8
_ONE_GPU = Assumptions(gpus_per_node=1, images_per_gpu=1)


@dataclass(frozen=True)
class MemoryCase:
    """A detector of the zoo in bfloat16, at its highest resolution, square.

    Attributes:
        config: its name.
    """

    config: str

    @property
    def name(self) -> str:
        return f"{self.config} in bfloat16"

    @property
    def quick(self) -> bool:
        """None is among the few cases of continuous integration: each takes some ten seconds."""
        return False

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of inference, training, and training with activations recomputed; nothing runs, so no times.

        Training is what :func:`~piip.analysis.sizing.plan` says of one GPU.
        """
        model = measure(self.config)
        backbone = build_on_meta(get_config(self.config).model).backbone
        ways = {"inference": (2 * model.params, peak_bytes(backbone, model.size))}  # 2 bytes each
        for name, recompute in {"training": False, "training, recomputed": True}.items():
            trained = replace(model, checkpointing=recompute)
            ways[name] = plan(trained, "DDP", 1, _ONE_GPU).memory - trained.saved, trained.saved
        about = environment(settings)
        return [
            Row("memory", self.name, name, numbers={"fixed_gb": f / 1e9, "image_gb": i / 1e9}, environment=about)
            for name, (f, i) in ways.items()
        ]


CASES = [
    MemoryCase(config)
    for config in (
        "mask_rcnn_piip_tsb_1120_896_448_1x",
        "mask_rcnn_piip_tsb_1568_1120_672_1x",
        "mask_rcnn_piip_sbl_1120_672_448_1x",
        "mask_rcnn_piip_sbl_1568_896_672_1x",
        "mask_rcnn_vit_b_1024_1x",
        "mask_rcnn_vit_l_1024_1x",
    )
]


def images_that_fit(gigabytes: float, fixed_gb: float, image_gb: float) -> int:
    """How large a batch a GPU holds, with a fifth of it left free."""
    return max(0, int((USABLE * gigabytes - fixed_gb) / image_gb))
