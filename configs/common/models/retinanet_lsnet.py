"""RetinaNet on LSNet; a leaf config names the size."""

from detectron2.config import LazyCall as L

from piip.modeling import LSNetFPN

from .retinanet import model

model.backbone = L(LSNetFPN)(bottom_up="???", out_channels=256, coarser_level=True)
