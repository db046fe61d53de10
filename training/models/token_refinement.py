"""Token Refinement Transformer: class attention, refined where most of it lies (BMVC 2022)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from wsss_rt.errors import UsageError, nearest
from wsss_rt.kernels.masked_reattention import EPSILON, masked_reattention, select_tokens, spread_mass
from wsss_rt.training.losses import check_tag_loss, tag_loss
from wsss_rt.training.models import reattention
from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.attention import (
    Observer,
    block_forward,
    block_mixing,
    block_sampled,
    run_blocks,
)
from wsss_rt.training.models.base import Localization, load_official
from wsss_rt.training.models.consistency import check_consistency, mirrored_losses
from wsss_rt.training.models.fusion import ClassRows, to_grid
from wsss_rt.training.models.patch_head import average_pool, new_patch_head, semantic_map
from wsss_rt.training.models.position import new_positions
from wsss_rt.training.models.vit_method import ViTLocalizer


class TokenRefinement(ViTLocalizer):
    """Token Refinement Transformer (arXiv 2208.01838, and its official code where the two differ).

    The class token's attention in all blocks but the last is the preliminary map m. The tokens that hold most
    of it attend to each other once more and get priorities; with their mean, so weighted, the class token
    passes the last block: the image's scores. Spreading the selected mass by priority refines m to m'. Maps
    are m' times those of the CAM branch, a block and a 3x3 convolution, which reads the tokens one block
    earlier than the scores do; they are signed and not normalised.

    The official code takes square images of ``img_size`` only. Here positions are resized for other sizes
    (bicubic, half-pixel centres), and stay untouched for that one.

    Training is official in two stages. First ``stage="tpsm"``: a model without CAM branch, whose map is m'
    for every class alike. Then ``stage="cam"`` with :meth:`load_first_stage`: all but ``camfuse_block`` has
    ``requires_grad`` off and stays in eval mode also after ``train()``. ``stage="joint"`` trains everything
    on the sum of both losses, as the paper writes it. What :meth:`localize` gives is the same for both full
    stages.

    Args:
        backbone: timm ViT without a head, of two blocks or more. Its last block and final norm are also what
            ``score_layer``, ``score_norm`` and the CAM branch start from.
        num_classes: C.
        img_size: side in pixels of the stored position grid.
        threshold: share of the attention that selected tokens may hold together, exclusive. Official runs use
            0.6 (CUB, 224 px), 0.65 (CUB, 384 px) and 0.95 (ILSVRC); the code's own 0.02 serves in none.
        kept_tokens: select this many tokens, those of largest attention, in place of a share of the mass: the
            official repository's baseline (``DeitPos``; 65 for CUB, 150 for ILSVRC), whose attention among
            them and whose priorities are plain softmaxes. 0 selects by ``threshold``.
        stage: ``"joint"``, ``"tpsm"`` or ``"cam"``, see above.
        loss: ``"cross_entropy"``, official, for one tag per image (several share it equally); or
            ``"soft_margin"``, for images with several tags, after which sigmoids of scores are probabilities.
        smoothing: label smoothing of the first stage's cross entropy, 0..1; 0.1 in the ILSVRC runs.
        consistency: ``"acr"`` trains on the image and its mirror image, and their attention shall agree (see
            ``consistency.py``); None, officially. Of all blocks but the last, whose
            attention is not a map's; not for ``stage="cam"``, which trains none.
        alpha: weight of that agreement.
        compact: run ``score_layer`` for the selected tokens alone, where nothing else is read of it: in
            :meth:`localize` without gradient and extras, and outside of graphs, whose shapes may not follow
            data. The same numbers but for rounding; the host waits for the largest count of the batch.

    Extras keep their batch dimension, and ``cls_attn_layers`` (L, B, N) has the layers in front of it.
    """

    operators = ("attention_aggregate", "select_tokens", "masked_reattention", "spread_mass")
    stages: tuple[str, ...] = ("joint", "tpsm", "cam")

    def __init__(
        self,
        backbone: Any,
        *,
        num_classes: int,
        img_size: int,
        threshold: float = 0.6,
        kept_tokens: int = 0,
        stage: str = "joint",
        loss: str = "cross_entropy",
        smoothing: float = 0.0,
        consistency: str | None = None,
        alpha: float = 100.0,
        compact: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size)
        self.consistency, self.alpha = check_consistency(consistency), alpha
        if self.consistency is not None and stage == "cam":
            raise UsageError("stage 'cam' trains no attention", fix="leave out consistency")
        if self.depth < 2:
            raise UsageError("token refinement needs a backbone of two blocks or more")
        if stage not in self.stages:
            raise UsageError(f"unknown stage {stage!r}", fix=nearest(stage, self.stages))
        check_tag_loss(loss, smoothing=smoothing)
        if not threshold > 0:
            raise UsageError(f"threshold is {threshold}, but it is a share of attention above 0")
        if kept_tokens < 0:
            raise UsageError(f"kept_tokens is {kept_tokens}, but it is a number of tokens, or 0")
        self.threshold = threshold
        self.kept_tokens = kept_tokens
        self.stage = stage
        self.loss = loss
        self.smoothing = smoothing
        self.compact = compact
        self.cls_token = token_ops.new_tokens(1, self.embed_dim)
        self.pos_embed = new_positions(1 + self.stored_side**2, self.embed_dim)
        self.head = nn.Linear(self.embed_dim, num_classes)
        self.score_layer = copy.deepcopy(self.blocks[-1])
        self.score_norm = copy.deepcopy(self.norm)
        self.score_head = nn.Linear(self.embed_dim, 1)
        if stage != "tpsm":
            self.camfuse_block = CamBranch(self.blocks[-1], self.norm, self.embed_dim, num_classes)
        if stage == "cam":
            self.requires_grad_(False)
            self.camfuse_block.requires_grad_(True)
            self.train()

    def train(self, mode: bool = True) -> Self:
        """Training mode; in the second stage for the CAM branch alone, so that nothing frozen is random."""
        super().train(mode)
        if self.stage == "cam":
            for name, child in self.named_children():
                child.train(mode and name == "camfuse_block")
        return self

    def load_first_stage(self, state: Mapping[str, Tensor]) -> None:
        """Take everything but the CAM branch from a model that was trained with ``stage="tpsm"``.

        Args:
            state: its state dict (ours or the official one, whose keys are the same); loaded strictly. A CAM
                branch in it is taken too.

        Raises:
            WsssError: keys are missing, extra or of another shape; nothing was loaded.
        """
        branch = {key: value for key, value in self.state_dict().items() if key.startswith("camfuse_block.")}
        load_official(self, {**branch, **state})

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.stage == "cam":
            # neither the last two blocks nor any attention matter to the branch
            with torch.no_grad():
                embedded, grid, _ = self._embed(images)
                tokens = run_blocks(list(self.blocks)[:-2], embedded)
            return {"cam": self._classify(average_pool(self.camfuse_block(tokens, grid)), targets)}

        def of_view(view: Tensor, observe: Observer | None) -> tuple[dict[str, Tensor], tuple[int, int]]:
            found = self._refine(view, observe)
            named = {"tpsm": self._classify(found.logits, targets, smoothing=self.smoothing)}
            if self.stage == "joint":
                cam = self.camfuse_block(found.before_last_two, found.grid)
                named["cam"] = self._classify(average_pool(cam), targets)
            return named, found.grid

        return mirrored_losses(of_view, images, consistency=self.consistency, alpha=self.alpha)

    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        compact = self.compact and not (extras or traced or torch.is_grad_enabled() or self.kept_tokens)
        found = self._refine(images, compact=compact)
        spread = found.refined
        if self.stage == "tpsm":
            # the first-stage model makes priorities sum to 1 here. Where nothing is selected its official
            # code divides 0 by 0; like the full model, this one then leaves m as it is
            spread = spread_mass(found.mass, found.selected, found.scores, epsilon=0.0)[1]
        refined = to_grid(spread[:, None], found.grid)
        cam: Tensor | None = None
        if self.stage == "tpsm":
            maps = refined.expand(-1, self.num_classes, -1, -1)
        else:
            cam = self.camfuse_block(found.before_last_two, found.grid)
            maps = refined * cam
        named: dict[str, Tensor] = {}
        if extras:
            named = {**_named(found), "m_prime": refined[:, 0]}
            if cam is not None:
                named |= {"logits_cam": average_pool(cam), "cam": cam, "M": maps}
        return Localization(found.logits, maps, named)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor]:
        height, width = images.shape[-2:]
        # symbolic sizes are no `int`, and must not be compared while tracing
        if type(height) is int and type(width) is int and min(height, width) < self.patch_size:
            raise UsageError(
                f"an image of {width}x{height} px is smaller than one {self.patch_size} px patch",
                fix="enlarge it, or leave it out",
            )
        return super()._embed(images)

    def _refine(
        self, images: Tensor, observe: Observer | None = None, *, compact: bool = False
    ) -> _Refinement:
        embedded, grid, _ = self._embed(images)
        blocks, seen = list(self.blocks), ClassRows()
        before_last_two = run_blocks(blocks[:-2], embedded, sums=seen, observe=observe)
        tokens = run_blocks(blocks[-2:-1], before_last_two, sums=seen, observe=observe)
        attention = torch.stack(seen.rows)
        mass = reattention.attention_mass(attention)
        by_count = self.kept_tokens > 0
        epsilon = 0.0 if by_count else EPSILON
        selected = (
            reattention.select_largest(mass, self.kept_tokens)
            if by_count
            else select_tokens(mass, self.threshold)
        )
        class_token, patches = token_ops.split(tokens, 1)
        attend = reattention.attend_selected if by_count else masked_reattention
        mix = partial(attend, selected=selected, scale=float(self.score_layer.attn.scale))
        if compact:
            places = _selected_first(selected)
            sample = partial(_gathered, places=places)
            reattended = block_sampled(self.score_layer, patches, sample, mix=partial(mix, places=places))
        else:
            reattended = block_mixing(self.score_layer, patches, mix)
        scores = self.score_head(self.score_norm(reattended))[..., 0].float()
        if compact:
            scores = torch.zeros_like(mass).scatter(1, places, scores)
        priorities, refined = spread_mass(mass, selected, scores, epsilon=epsilon)
        # weighted are the tokens that entered the score layer, not those that left it
        fused = (priorities[..., None] * patches).sum(dim=1)
        pair = torch.cat((class_token, fused[:, None]), dim=1)
        encoded = self.norm(block_forward(self.blocks[-1], pair))
        return _Refinement(
            grid=grid,
            before_last_two=before_last_two,
            attention=attention,
            mass=mass,
            selected=selected,
            reattended=reattended,
            scores=scores,
            priorities=priorities,
            refined=refined,
            pair=pair,
            encoded=encoded,
            logits=self.head(encoded[:, 0]).float(),
        )

    def _classify(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return tag_loss(self.loss, logits, targets, smoothing=smoothing)


class CamBranch(nn.Module):
    """Class evidence per patch: a transformer block, a norm, and a 3x3 convolution over the patches.

    Args:
        block: what its own block starts from.
        norm: what its norm starts from.
        dim: D.
        classes: C.
    """

    def __init__(self, block: nn.Module, norm: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.cam_tr = copy.deepcopy(block)
        self.cam_norm = copy.deepcopy(norm)
        self.cam_head: nn.Module = new_patch_head(dim, classes)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, 1 + N, D), class token first, to signed maps (B, C, rows, columns) float32."""
        patches = token_ops.split(self.cam_norm(block_forward(self.cam_tr, tokens)), 1)[1]
        return semantic_map(self.cam_head, patches, grid)


@dataclass(frozen=True)
class _Refinement:
    """All that is known before the map: ``attention`` (L, B, N), ``mass``, ``selected``, ``scores``,
    ``priorities`` and ``refined`` (B, N), ``pair`` and ``encoded`` (B, 2, D), tokens as in the sequence."""

    grid: tuple[int, int]
    before_last_two: Tensor
    attention: Tensor
    mass: Tensor
    selected: Tensor
    reattended: Tensor
    scores: Tensor
    priorities: Tensor
    refined: Tensor
    pair: Tensor
    encoded: Tensor
    logits: Tensor


def _selected_first(selected: Tensor) -> Tensor:
    """Places (B, S) of the selected of N tokens; images that select fewer than others ask for some more."""
    most = max(1, int(selected.sum(dim=-1).max()))
    return selected.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]


def _gathered(tokens: Tensor, *, places: Tensor) -> Tensor:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def _named(found: _Refinement) -> dict[str, Tensor]:
    """Intermediates that both variants of the model have."""
    ordered, order = torch.sort(found.mass, dim=-1, descending=True, stable=True)
    return {
        "logits_tpsm": found.logits,
        "cls_attn_layers": found.attention,
        "m": found.mass,
        "sort_index": order.to(torch.int32),
        "cumsum": ordered.cumsum(dim=-1),
        "b": found.selected.to(torch.uint8),
        "n_selected": found.selected.sum(dim=-1).to(torch.int32),
        "score_tokens": found.reattended,
        "score_raw": found.scores,
        "lam": found.priorities,
        "weight_rat": reattention.selected_mass(found.mass, found.selected),
        "fused_token": found.pair[:, 1],
        "last_block_input": found.pair,
        "encoded": found.encoded,
    }
