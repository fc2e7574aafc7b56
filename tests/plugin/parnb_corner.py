"A package of somebody else: an attack with its own loss, and a cleaner that does not train. See test_plugin.py."

from typing import ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from parnb.attacks.base import Trigger
from parnb.cleaners.base import Cleaner
from parnb.registry import register_attack, register_cleaner
from parnb.training.objective import Objective, clip_loss
from pydantic import Field


class CloseToClean(Objective):
    "The CLIP loss, plus the distance of the image embeddings to those of the clean model."

    def __init__(self, model, recipe, clean, weight):
        super().__init__(model, recipe)
        self.frozen, self.weight = [clean.eval()], weight

    def forward(self, images, tokens, labels):
        img, txt = self.embed(images, tokens)
        with torch.no_grad():
            before = F.normalize(self.frozen[0].encode_image(images).float(), dim=-1)
        clip, distance = clip_loss(img, txt, self.scale), (img - before).square().sum(1).mean()
        return dict(loss=clip + self.weight * distance, clip=clip, distance=distance)


@register_attack(
    "corner_square",
    label="Corner-Square",
    reference="an example, 2026",
    recipes={"default": dict(rate=0.05, parameters=dict(size=0.3))},
)
class CornerSquare(Trigger):
    "A white square in the corner, poisoned with a loss that keeps embeddings close to those of the clean model."

    main: ClassVar[str] = "size"
    size: float = Field(0.2, gt=0, le=1, description="share of the image's side")
    weight: float = Field(0.1, ge=0, description="weight of the distance in the loss")

    def apply(self, images, ids, seed):
        out, side = images.clone(), max(1, round(self.size * images.shape[-1]))
        out[:, :, -side:, -side:] = 1
        return out

    def objective(self, model, recipe, reference):
        return CloseToClean(model, recipe, reference(), self.weight)


@register_cleaner(
    "shrink",
    label="Shrink",
    reference="an example, 2026",
    recipes={"default": dict(parameters=dict(share=0.05))},
)
class Shrink(Cleaner):
    "Set the smallest weights of each matrix to zero."

    share: float = Field(0.05, ge=0, lt=1, description="share of the weights that become zero")

    @torch.no_grad()
    def clean(self, model, pairs, tokenizer, recipe, reference, **options):
        weights = [w for w in model.parameters() if w.ndim > 1]
        for w in weights:
            limit = w.abs().flatten().kthvalue(max(1, round(self.share * w.numel()))).values
            w[w.abs() <= limit] = 0
        return model, pd.DataFrame(dict(step=[0], zeros=[sum(float((w == 0).sum()) for w in weights)]))
