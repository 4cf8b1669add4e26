"""scikit-learn's handwritten digits, 8x8 pixels made 32x32; in memory, every fifth held out."""

from .imagenet import dataloader

dataloader.train.dataset.names = "digits_train"
dataloader.test.dataset.names = "digits_val"
# No flip: a mirrored digit is another one, or none. Crops leave most of the stroke.
dataloader.train.mapper.transform.update(size=32, hflip=0.0, scale=[0.7, 1.0], auto_augment=None, color_jitter=None)
dataloader.test.mapper.transform.crop_pct = 1.0
dataloader.train.update(total_batch_size=64, num_workers=0)
dataloader.test.update(num_workers=0)
