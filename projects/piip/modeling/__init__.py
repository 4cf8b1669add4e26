"""Models: image -> pyramid -> branches -> interaction -> merging -> necks."""

from .. import needs_detectron2  # noqa: F401
from .branches import Branch, InternViTBranch, ViTBranch
from .interaction import InteractionUnit
from .merging import BranchMerge
from .necks import FPN, ChannelMapper, SimplePyramidNeck
from .piip import PIIP
from .pyramid import image_pyramid
from .single_branch import SingleBranch

__all__ = [
    "FPN",
    "PIIP",
    "Branch",
    "BranchMerge",
    "ChannelMapper",
    "InteractionUnit",
    "InternViTBranch",
    "SimplePyramidNeck",
    "SingleBranch",
    "ViTBranch",
    "image_pyramid",
]
