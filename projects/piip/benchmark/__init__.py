"""Speed of operators and backbones beside other ways to compute the same, measured in turns in one process.

Times of a machine mean little elsewhere, and little on a shared one; ratios of what ran in turns do. So every row has
the ratio to the first one of its case, and only ratios are compared with earlier measurements.
"""

from .records import Row, append, compare, environment, read
from .timing import Settings, Timing, in_turns

__all__ = ["Row", "Settings", "Timing", "append", "compare", "environment", "in_turns", "read"]
