"""LSNet-T, pretrained on ImageNet, learns your own classes: pictures in a folder per class, see the data's fields.

Set ``train.num_images`` to the number of your training pictures: it makes the length of an epoch.
"""

from ..common.data.custom_images import dataloader, num_classes
from ..common.lsnet_300ep import lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 128
dataloader.train.num_workers = dataloader.test.num_workers = 4
model.num_classes = num_classes
model.network.model_name = "lsnet_t"
optimizer.lr = 5e-4
train.update(
    output_dir="./output/quickstart/classification_lsnet_custom_images",
    init_checkpoint="lsnet://lsnet_t",
    epochs=30,
    num_images=5000,
)
