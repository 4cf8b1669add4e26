"""Cityscapes with 19 classes: crops of 512 x 1024 pixels, tests on whole images.

Unpack ``leftImg8bit`` and ``gtFine`` into ``$DETECTRON2_DATASETS/cityscapes``, and make ``*_labelTrainIds.png`` with
the script ``createTrainIdLabelImgs`` of cityscapesscripts.
"""

from .ade20k import dataloader

dataloader.train.dataset.names = "cityscapes_fine_sem_seg_train"
dataloader.train.mapper.num_classes = 19
dataloader.train.mapper.augmentations[0].update(long_edge=2048, short_edge=1024)
dataloader.train.mapper.augmentations[1].crop_size = [512, 1024]
dataloader.test.dataset.names = "cityscapes_fine_sem_seg_val"
dataloader.test.mapper.augmentations = []
