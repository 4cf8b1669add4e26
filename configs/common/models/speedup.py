"""What the released "speedup" models leave out."""

from omegaconf import DictConfig


def speed_up(piip: DictConfig) -> None:
    """Interactions without projections and normalisations; MLPs with the tanh approximation of GELU."""
    piip.interaction.update(with_proj=False, with_norm=False)
    for branch in piip.branches:
        branch.activation = "gelu_tanh"
