"""Model families that can be a branch of the pyramid, one file each."""

from .base import Branch, BranchState
from .internvit import InternViTBranch
from .vit import ViTBranch

__all__ = ["Branch", "BranchState", "InternViTBranch", "ViTBranch"]
