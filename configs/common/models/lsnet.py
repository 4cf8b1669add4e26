"""LSNet as a backbone for detectors and segmentors, in its three sizes."""

from detectron2.config import LazyCall as L

from piip.modeling import LSNet
from piip.modeling.lsnet import VARIANTS

lsnet_t = L(LSNet)(**VARIANTS["t"])
lsnet_s = L(LSNet)(**VARIANTS["s"])
lsnet_b = L(LSNet)(**VARIANTS["b"])
