"""Models: image -> pyramid -> branches -> interaction -> merging -> necks."""

from .. import needs_detectron2  # noqa: F401
from .branches import (
    BEiTBranch,
    Branch,
    ConvNeXtBranch,
    InternViTBranch,
    LSNetBranch,
    TimmBranch,
    UniPerceiverBranch,
    ViTBranch,
)
from .fuse import fuse
from .interaction import InteractionUnit
from .lsnet import LSNet, LSNetClassifier
from .lsnet_fpn import LSNetFPN
from .merging import BranchMerge
from .necks import FPN, ChannelMapper, SimplePyramidNeck
from .piip import PIIP
from .piip_classifier import PIIPClassifier
from .pyramid import image_pyramid
from .single_branch import SingleBranch

__all__ = [
    "FPN",
    "PIIP",
    "BEiTBranch",
    "Branch",
    "BranchMerge",
    "ChannelMapper",
    "ConvNeXtBranch",
    "InteractionUnit",
    "InternViTBranch",
    "LSNet",
    "LSNetBranch",
    "LSNetClassifier",
    "LSNetFPN",
    "PIIPClassifier",
    "SimplePyramidNeck",
    "SingleBranch",
    "TimmBranch",
    "UniPerceiverBranch",
    "ViTBranch",
    "fuse",
    "image_pyramid",
]
