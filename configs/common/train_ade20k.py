"""What the training tool reads for trainings on ADE20K, whose length is told in iterations."""

from .train import train

train.update(max_iter=80000, num_images=20210, eval_period=8000)
train.checkpointer.period = 8000
train.best_checkpointer.metric = "sem_seg/mIoU"
