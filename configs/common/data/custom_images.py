"""Your own pictures in a folder per class: edit the three fields, or set them on the command line.

    dataloader.custom.folders.train=/data/birds/train   dataloader.custom.classes=/data/birds/train   ...

A leaf config takes ``dataloader`` from here, and ``num_classes`` for its model, which then follows the classes.
"""

from detectron2.config import LazyCall as L

from piip.data import image_folder, num_folders

from .imagenet import dataloader

dataloader.custom = {
    # Each holds one folder of pictures per class.
    "folders": {"train": "datasets/custom/train", "val": "datasets/custom/val"},
    # Names of the classes' folders, in the order of the labels; or one folder whose sub-folders they are.
    "classes": ["first", "second"],
    # Leave out pictures that cannot be read, instead of refusing the data.
    "skip_unreadable": False,
}

for split, loader in (("train", dataloader.train), ("val", dataloader.test)):
    loader.dataset = L(image_folder)(
        names=f"custom_images_{split}",
        root=f"${{dataloader.custom.folders.{split}}}",
        classes="${dataloader.custom.classes}",
        skip_unreadable="${dataloader.custom.skip_unreadable}",
    )

num_classes = L(num_folders)(classes="${dataloader.custom.classes}")
