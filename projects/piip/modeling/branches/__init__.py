"""Model families that can be a branch of the pyramid, one file each."""

from .base import Branch, BranchState
from .beit import BEiTBranch
from .convnext import ConvNeXtBranch
from .internvit import InternViTBranch
from .lsnet import LSNetBranch
from .timm import TimmBranch
from .uniperceiver import UniPerceiverBranch
from .vit import ViTBranch

__all__ = [
    "BEiTBranch",
    "Branch",
    "BranchState",
    "ConvNeXtBranch",
    "InternViTBranch",
    "LSNetBranch",
    "TimmBranch",
    "UniPerceiverBranch",
    "ViTBranch",
]
