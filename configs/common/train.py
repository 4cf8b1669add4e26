"""What the training tool reads besides model, data, optimizer and schedule."""

from piip.engine.config import EPOCH_ITERATIONS, TRAINING_ITERATIONS

train = dict(
    output_dir="./output",
    # Weights to start from: a file or an address, of any supported format. Empty: the pretrained weights that the
    # model's branches name, or none.
    init_checkpoint="",
    # Epochs and images make the length, and a change of dataloader.train.total_batch_size keeps the number of epochs.
    # A number in max_iter fixes the iterations instead.
    epochs=12,
    num_images=117266,  # COCO train2017 without the images that have no annotations
    max_iter=TRAINING_ITERATIONS,
    # Every random number of a training follows from it. null: drawn once, logged, and kept when resuming.
    seed=None,
    # Falls back to the CPU where there is no GPU.
    device="cuda",
    # torch.compile for the network, also with --eval-only: null, true or a mode ("reduce-overhead": CUDA graphs).
    compile=None,
    # Let cuDNN try its algorithms: faster where all inputs have one size.
    cudnn_benchmark=False,
    # float16 scales the loss and needs a GPU; bfloat16 does neither.
    amp=dict(enabled=False, dtype="bfloat16"),
    # adaptive: max_norm is a share of the norm of each unit's weights.
    clip_grad=dict(enabled=False, max_norm=1.0, norm_type=2.0, adaptive=False),
    # Moving average of the weights: it is what gets evaluated, and the `model` of every checkpoint.
    ema=dict(enabled=False, decay=0.9999),
    # Into how many parts each process divides its share of a batch, to run one after the other with less memory.
    accumulate=1,
    # Several processes: "ddp" has a copy of the model in each, "fsdp" one model spread over them.
    parallel="ddp",
    # Arguments of DistributedDataParallel, and the type in which gradients travel: null, "float16" or "bfloat16".
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, gradient_compression=None),
    # How many copies there are of the spread model: a number, or "machines" for one on each.
    fsdp=dict(replicate=1),
    # Iterations between checkpoints, and how many of them stay.
    checkpointer=dict(period=EPOCH_ITERATIONS, max_to_keep=3),
    # model_best.pth holds the weights with the highest value of a metric.
    best_checkpointer=dict(enabled=True, metric="bbox/AP"),
    # Iterations between evaluations (0: only at the end) and between log lines.
    eval_period=EPOCH_ITERATIONS,
    log_period=20,
    # Curves and pictures at the end, under <output_dir>/report; detections with a lower score are not drawn.
    report=dict(enabled=True, num_images=8, score_threshold=0.5),
)
