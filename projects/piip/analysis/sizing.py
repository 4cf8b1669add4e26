"""What a training on several GPUs takes, on paper: memory, communication, time per step and scaling.

Parameters, multiply-adds and saved activations are counted on the model itself; the machine is an assumption, of which
every number can be replaced. Every rank trains on the same number of images whatever the number of ranks, so the total
batch grows with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.config import load_config
from ..errors import ConfigError, did_you_mean
from ..modeling import SingleBranch
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.without_weights import build_on_meta
from .activations import activation_bytes
from .complexity import analyze, natural_size

__all__ = [
    "STRATEGIES",
    "Assumptions",
    "Model",
    "Plan",
    "all_reduce_bytes",
    "gather_bytes",
    "measure",
    "plan",
    "state_bytes",
]

STRATEGIES = ("DDP", "FSDP", "HSDP")


@dataclass(frozen=True)
class Assumptions:
    """A cluster and how well it is used: none of this is measured, set what is known of yours.

    Attributes:
        gpus_per_node: GPUs of a node, one rank each.
        images_per_gpu: images per rank and step.
        gpu_memory: bytes of a GPU.
        peak_flops: floating-point operations per second of a GPU in bf16, as its data sheet says.
        utilisation: share of it that a training step reaches.
        intra_node_bandwidth: bytes per second that a GPU sends to the others of its node.
        inter_node_bandwidth: bytes per second that a node sends to others, all its adapters together.
        overlap: share of the computing behind which communication can hide.
        weight_bytes: bytes of a weight that FSDP and HSDP gather, 2 for bf16.
        gradient_bytes: bytes of a gradient that is sent, 4 for float32, 2 with compression.
    """

    gpus_per_node: int = 8
    images_per_gpu: int = 2
    gpu_memory: float = 80e9
    peak_flops: float = 989e12
    utilisation: float = 0.25
    intra_node_bandwidth: float = 300e9
    inter_node_bandwidth: float = 50e9
    overlap: float = 0.7
    weight_bytes: float = 2
    gradient_bytes: float = 4

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name in ("utilisation", "overlap"):
                if not 0 < value <= 1:
                    raise ConfigError(f"assumption {name}={value:g} is a share: give more than 0 and at most 1.")
            elif not value > 0:
                raise ConfigError(f"assumption {name}={value:g} must be positive.")

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Assumptions:
        """The defaults with some replaced: ``["peak_flops=312e12", ...]``.

        Raises:
            ConfigError: for what is no assumption or no number.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in fields:
                hint = did_you_mean(name, fields)
                raise ConfigError(f"{setting!r}: there is no assumption {name!r}, but {', '.join(fields)}.{hint}")
            try:
                values[name] = (int if fields[name].type == "int" else float)(text)
            except ValueError as error:
                raise ConfigError(f"{setting!r}: {text!r} is not a number; write {name}=VALUE.") from error
        return cls(**values)


@dataclass(frozen=True)
class Model:
    """What is counted on a model.

    Attributes:
        name: of its config.
        size: height and width of the padded images.
        params: parameters.
        trainable: those of them that are trained.
        macs: multiply-adds of a forward pass, per image.
        activations: bytes saved per image where nothing is recomputed, of the backbone with its neck and of the heads.
        activations_checkpointed: the same where branches and interactions are recomputed.
        checkpointing: whether the config asks for that.
    """

    name: str
    size: tuple[int, int]
    params: int
    trainable: int
    macs: int
    activations: tuple[int, int]
    activations_checkpointed: tuple[int, int]
    checkpointing: bool

    @property
    def saved(self) -> int:
        """Bytes saved per image in training as the config says."""
        return sum(self.activations_checkpointed if self.checkpointing else self.activations)


@dataclass(frozen=True)
class Plan:
    """A training on so many nodes: bytes per GPU, bytes that a rank sends per step, seconds per step.

    Attributes:
        nodes: number of nodes.
        strategy: one of :data:`STRATEGIES`.
        states: bytes of weights, gradients and Adam's two averages on a GPU.
        memory: bytes with the saved activations and, for DDP, the copies of the weights in bf16.
        sent: bytes that a rank sends per step.
        leaving: those that leave a node per step, sent by all its ranks together.
        seconds: of a step.
        efficiency: seconds of a GPU by itself, without communication, relative to that.
    """

    nodes: int
    strategy: str
    states: float
    memory: float
    sent: float
    leaving: float
    seconds: float
    efficiency: float


def state_bytes(model: Model, strategy: str, nodes: int, gpus_per_node: int) -> float:
    """Bytes of the states on one GPU: 16 per trained parameter, 4 per frozen one.

    Weight, gradient and two averages of Adam, all in float32, are whole on every GPU with DDP, split over all GPUs
    with FSDP, and over those of a node with HSDP.
    """
    parts = {"DDP": 1, "FSDP": nodes * gpus_per_node, "HSDP": gpus_per_node}[strategy]
    return (16 * model.trainable + 4 * (model.params - model.trainable)) / parts


def all_reduce_bytes(size: float, ranks: int) -> float:
    """Bytes that each rank sends to sum ``size`` bytes in a ring: 2 (n - 1) / n of them; none for one rank."""
    return 2 * gather_bytes(size, ranks)


def gather_bytes(size: float, ranks: int) -> float:
    """Bytes that each rank sends for an all-gather to, or a reduce-scatter of, ``size`` bytes: (n - 1) / n of them."""
    return (ranks - 1) / ranks * size


def plan(model: Model, strategy: str, nodes: int, given: Assumptions) -> Plan:
    """Memory, communication and time of a training.

    A step computes 2 FLOPs per multiply-add for the forward pass, twice that for the backward pass, and the forward
    pass once more where activations are recomputed. Communication hides behind a share ``overlap`` of the backward pass
    (DDP, whose gradients become ready one after the other) or of all computing (FSDP and HSDP, which also gather the
    weights for the forward pass); what is left is added.

    - DDP: all-reduce of the gradients over all ranks.
    - FSDP: all-gather of the weights for the forward and for the backward pass, reduce-scatter of the gradients, over
      all ranks.
    - HSDP: the same over the ranks of a node; then all-reduce of every rank's share of the gradients with the same rank
      of the other nodes.

    A ring through several nodes crosses each of their borders once, so all that a rank sends also leaves the node once,
    whatever the number of its ranks; the ring is as fast as a GPU's links within the node or all adapters of the node
    together, whichever is slower. Between nodes HSDP has a ring for each rank of a node, and these share the adapters;
    they work while those within the nodes do.

    Not contained: latencies, waiting for the data or for the slowest rank, the optimiser's step.
    """
    gpus = given.gpus_per_node
    weights, gradients = given.weight_bytes * model.params, given.gradient_bytes * model.trainable
    ring = gpus if strategy == "HSDP" else nodes * gpus
    if strategy == "DDP":
        around = all_reduce_bytes(gradients, ring)
    else:
        around = 2 * gather_bytes(weights, ring) + gather_bytes(gradients, ring)
    if strategy == "HSDP":
        between = all_reduce_bytes(gradients / gpus, nodes)
        leaving = gpus * between
    else:
        between = 0.0
        leaving = around if nodes > 1 else 0.0
    talking = max(around / given.intra_node_bandwidth, leaving / given.inter_node_bandwidth)

    passes = 4 if model.checkpointing else 3
    forward = 2 * model.macs * given.images_per_gpu / (given.peak_flops * given.utilisation)
    computing = passes * forward
    hidden = given.overlap * ((passes - 1) * forward if strategy == "DDP" else computing)
    seconds = computing + max(0.0, talking - hidden)

    states = state_bytes(model, strategy, nodes, gpus)
    copies = 2 * model.params if strategy == "DDP" else 0
    memory = states + copies + given.images_per_gpu * model.saved
    return Plan(nodes, strategy, states, memory, around + between, leaving, seconds, computing / seconds)


def measure(config: str, opts: Sequence[str] = ()) -> Model:
    """Counts the detector of a config for a training at its highest resolution, square, with autocast to bf16.

    Args:
        config: name of a packaged config, or a file.
        opts: overrides ``key=value``.

    Raises:
        ConfigError: for a config without a PIIP or a baseline of one branch.
    """
    cfg = load_config(config, list(opts))
    if cfg.get("model") is None:
        raise ConfigError(f"config {config!r} has no model to size.")
    model = build_on_meta(cfg.model)
    network = next((m for m in model.modules() if isinstance(m, BranchPyramid | SingleBranch)), None)
    if network is None:
        raise ConfigError(
            f"config {config!r}: {type(model).__name__} contains no PIIP and no baseline of it; only these are sized."
        )
    checkpointing = getattr(getattr(network, "branch", network), "use_act_checkpoint", False)
    complexity = analyze(model, (natural_size(model),) * 2)
    saved = {}
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        saved[enable] = activation_bytes(model, complexity.size)
    return Model(
        name=config,
        size=complexity.size,
        params=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=complexity.total.macs,
        activations=saved[False],
        activations_checkpointed=saved[True],
        checkpointing=checkpointing,
    )
