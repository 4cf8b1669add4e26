"""The transformer of DINO: encoder over all levels, queries from its best tokens, decoder that refines their boxes.

Source: DINO (arXiv:2203.03605), Sec. 3; Deformable DETR (arXiv:2010.04159) for the layers and the two stages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers import MSDeformAttn
from ...layers.deform_attn import reference_points
from .dino_denoising import DenoisingQueries, inverse_sigmoid
from .position import box_position, map_position

__all__ = ["DINOTransformer", "Predictions"]


@dataclass(frozen=True)
class Predictions:
    """What the transformer says: after every decoder layer, and for the encoder's tokens that became queries.

    Boxes are ``(cx, cy, w, h)`` in units of the image's width and height. Denoising queries come first.

    Attributes:
        logits: (layers, B, Q, num_classes).
        boxes: (layers, B, Q, 4).
        proposal_logits: (B, K, num_classes), without denoising queries.
        proposal_boxes: (B, K, 4).
    """

    logits: Tensor
    boxes: Tensor
    proposal_logits: Tensor
    proposal_boxes: Tensor


class DINOTransformer(nn.Module):
    """Encoder, query selection and decoder with their heads.

    The tokens with the best class scores give the decoder its first boxes; what the queries contain is learned. Every
    layer corrects the boxes of the one before; its gradient goes two layers back ("look forward twice").

    Args:
        num_classes: classes to score, each by a sigmoid.
        dim: width; a multiple of 4 and of ``num_heads``.
        num_heads: attention heads.
        num_points: places that deformable attention samples per head and level.
        num_levels: feature maps.
        ffn_dim: hidden width of the feed-forward networks.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        num_queries: objects that can be found; fewer where the maps have fewer cells.
        temperature: longest wavelength of the cells' position embedding.

    Raises:
        ConfigError: for numbers that do not fit together.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        num_levels: int = 4,
        ffn_dim: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        num_queries: int = 900,
        temperature: float = 20.0,
    ) -> None:
        super().__init__()
        counts = {
            "num_classes": num_classes,
            "ffn_dim": ffn_dim,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "num_queries": num_queries,
        }
        for name, number in counts.items():
            if number < 1:
                raise ConfigError(f"DINO transformer: {name}={number} must be at least 1.")
        if dim % 4:
            raise ConfigError(f"DINO transformer: dim={dim} must be a multiple of 4, for its position embeddings.")
        self.num_classes, self.num_levels, self.num_queries, self.dim = num_classes, num_levels, num_queries, dim
        self.temperature = temperature
        attention = {"num_heads": num_heads, "num_levels": num_levels, "num_points": num_points}
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.encoder = nn.ModuleList(EncoderLayer(dim, ffn_dim, attention) for _ in range(encoder_layers))
        self.proposal_proj = nn.Linear(dim, dim)
        self.proposal_norm = nn.LayerNorm(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.decoder = nn.ModuleList(DecoderLayer(dim, ffn_dim, attention) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.box_position_proj = _mlp(2 * dim, dim, dim)
        # One of each per decoder layer, and one for the encoder's proposals.
        self.class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(decoder_layers + 1))
        self.box_heads = nn.ModuleList(_mlp(dim, dim, dim, 4) for _ in range(decoder_layers + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Everything is unlikely at first, with a probability of 0.01, and boxes stay where the proposals are."""
        heads = {*self.class_heads.modules(), *self.box_heads.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in heads:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
                nn.init.zeros_(module.in_proj_bias)
        for module in self.modules():  # again, since its linear layers come after it
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        nn.init.normal_(self.query_embed.weight)
        for class_head, box_head in zip(self.class_heads, self.box_heads, strict=True):
            nn.init.constant_(class_head.bias, -math.log((1 - 0.01) / 0.01))
            nn.init.zeros_(box_head[-1].weight)
            nn.init.zeros_(box_head[-1].bias)

    def forward(
        self, features: Sequence[Tensor], padding: Tensor, denoising: DenoisingQueries | None = None
    ) -> Predictions:
        """Finds objects.

        Args:
            features: maps of all levels, (B, dim, h, w) each, finest first.
            padding: (B, H, W) bool, True for pixels of the batch that belong to no image.
            denoising: noisy ground truth, in training.
        """
        grids = [tuple(feature.shape[-2:]) for feature in features]
        masks = [F.interpolate(padding[None].float(), size=grid)[0].bool() for grid in grids]
        mask = torch.cat([m.flatten(1) for m in masks], dim=1)
        tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)
        position = torch.cat(
            [
                map_position(m, self.dim // 2, self.temperature).flatten(1, 2) + embed
                for m, embed in zip(masks, self.level_embed, strict=True)
            ],
            dim=1,
        )
        # Places are in units of the image; a level's grid also covers padding, so there they are times its share.
        shares = torch.stack([_image_share(m) for m in masks], dim=1)  # (B, L, 2)
        centres = torch.cat(
            [
                reference_points(g, mask.device) / share[:, None]
                for g, share in zip(grids, shares.unbind(1), strict=True)
            ],
            dim=1,
        )
        reference = centres[:, :, None] * shares[:, None]
        for layer in self.encoder:
            tokens = layer(tokens, position, reference, grids, mask)

        proposal_logits, proposals = self._propose(tokens, centres, grids, mask)
        count = proposals.shape[1]
        queries = self.query_embed.weight[:count].expand(len(tokens), -1, -1)
        boxes = proposals.detach()
        blocked = None
        if denoising is not None:
            queries = torch.cat([denoising.content, queries], dim=1)
            boxes = torch.cat([denoising.boxes, boxes], dim=1)
            blocked = denoising.blocked(count)
        logits, boxes = self._decode(queries, boxes.sigmoid(), tokens, shares, grids, mask, blocked)
        return Predictions(logits, boxes, proposal_logits, proposals.sigmoid())

    def _propose(
        self, tokens: Tensor, centres: Tensor, grids: Sequence[tuple[int, int]], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits and boxes (before the sigmoid) of the tokens with the best class scores, best first.

        Each token proposes a box around its own place, of a size given by its level. Places outside of the image are
        not chosen before those inside are used up; the released code does not look, but training teaches it so.
        """
        sizes = [centres.new_full((h * w, 2), 0.05 * 2.0**level) for level, (h, w) in enumerate(grids)]
        anchors = torch.cat([centres, torch.cat(sizes).expand_as(centres)], dim=-1)
        usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1) & ~mask
        tokens = self.proposal_norm(self.proposal_proj(tokens.masked_fill(~usable[..., None], 0.0)))
        logits = self.class_heads[-1](tokens)
        ranking = logits.detach().amax(-1).masked_fill(~usable, -math.inf)
        chosen = ranking.topk(min(self.num_queries, ranking.shape[1]), dim=1).indices[..., None]
        anchors = anchors.clamp(0.01, 0.99).logit().gather(1, chosen.expand(-1, -1, 4))
        tokens = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1]))
        logits = logits.gather(1, chosen.expand(-1, -1, logits.shape[-1]))
        return logits, self.box_heads[-1](tokens) + anchors

    def _decode(
        self,
        queries: Tensor,
        boxes: Tensor,
        tokens: Tensor,
        shares: Tensor,
        grids: Sequence[tuple[int, int]],
        mask: Tensor,
        blocked: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits and boxes after every layer; ``boxes`` are those to start from, in units of the image."""
        all_logits, all_boxes = [], []
        refined = boxes  # the same numbers, but with the gradient of the layer before
        for layer, class_head, box_head in zip(self.decoder, self.class_heads[:-1], self.box_heads[:-1], strict=True):
            reference = boxes[:, :, None] * shares.repeat(1, 1, 2)[:, None]
            # In units of the padded map, as in the released code: a little of the padding's size enters here.
            position = self.box_position_proj(box_position(reference[:, :, 0], self.dim // 2))
            queries = layer(queries, position, reference, tokens, grids, mask, blocked)
            normed = self.decoder_norm(queries)
            all_logits.append(class_head(normed))
            all_boxes.append((box_head(normed) + inverse_sigmoid(refined)).sigmoid())
            # The next layer starts from the correction by the unnormed queries, as in the released code.
            refined = (box_head(queries) + inverse_sigmoid(boxes)).sigmoid()
            boxes = refined.detach()
        return torch.stack(all_logits), torch.stack(all_boxes)


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward network; norms come last."""

    def __init__(self, dim: int, ffn_dim: int, attention: dict[str, int]) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, **attention)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = _mlp(dim, ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, position: Tensor, reference: Tensor, grids: Sequence[tuple[int, int]], mask: Tensor
    ) -> Tensor:
        tokens = self.norm1(tokens + self.self_attn(tokens + position, reference, tokens, grids, mask))
        return self.norm2(tokens + self.ffn(tokens))


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the tokens, a feed-forward network; norms come last."""

    def __init__(self, dim: int, ffn_dim: int, attention: dict[str, int]) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, attention["num_heads"], batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = MSDeformAttn(dim, **attention)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = _mlp(dim, ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference: Tensor,
        tokens: Tensor,
        grids: Sequence[tuple[int, int]],
        mask: Tensor,
        blocked: Tensor | None,
    ) -> Tensor:
        placed = queries + position
        mixed, _ = self.self_attn(placed, placed, queries, attn_mask=blocked, need_weights=False)
        queries = self.norm1(queries + mixed)
        queries = self.norm2(queries + self.cross_attn(queries + position, reference, tokens, grids, mask))
        return self.norm3(queries + self.ffn(queries))


def _mlp(*dims: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _image_share(mask: Tensor) -> Tensor:
    """Width and height of the image in units of a padded map (B, h, w) -> (B, 2)."""
    inside = (~mask).float()
    return torch.stack([inside[:, 0].mean(-1), inside[:, :, 0].mean(-1)], dim=-1)
