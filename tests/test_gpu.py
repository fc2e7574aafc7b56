"""Devices of tensors as on a GPU, without one.

torch's fake tensors have a device and a shape, and raise an error when they meet a tensor of another device.
These tests need a torch that was built with CUDA.
"""

import sys

import numpy as np
import open_clip
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from parnb.attacks.base import make_trigger
from parnb.data.pairs import Pairs
from parnb.models.clip import normalise, pixels
from parnb.registry import attacks, cleaners
from parnb.training import objective as training_objective
from parnb.training.recipe import Compute, Recipe

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch was built without CUDA")
CUDA = torch.device("cuda")
WITHOUT_FILES = [name for name, method in attacks().items() if not method.cls().files()]


@pytest.fixture
def fake():
    kept = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot become fake in place
    try:
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(kept)


def tokenize(texts):
    "Tokens without a vocabulary: start, words, end. The end has the largest number, where CLIP pools."
    rows = [[49406, *range(2, len(t.split()) + 2), 49407] for t in texts]
    return torch.tensor([row + [0] * (77 - len(row)) for row in rows])


def random_pairs(count, size):
    images = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    captions = [f"a photo of {chr(97 + i % 26) * 3} there" for i in range(count)]
    return Pairs(images, captions, np.arange(count), np.full(count, -1), "noise")


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_triggers(fake, name, size):
    x = torch.rand(4, 3, size, size, device=CUDA)
    y = make_trigger(name)(x, torch.arange(4), 0)
    assert (y.device.type, y.shape) == ("cuda", x.shape)


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-32-quickgelu"])
@pytest.mark.parametrize("method", cleaners())
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step(method, name, micro_batches, request, monkeypatch):
    "Batch and losses of each cleaner: no tensor stays on the CPU, and nothing waits for the GPU."
    pairs, recipe = random_pairs(8, 224), Recipe(epochs=1, batch_size=8, lr=1e-4, batch_norm="running")
    cls = cleaners()[method].cls
    options = {k: v for k, v in dict(noise=0.2, cutout=0.5).items() if k in cls.model_fields} | cls.trial

    def make():
        return open_clip.create_model(name)

    objective = cls(**options).objective(make(), recipe, make)
    objective.configure(Compute(micro_batches=micro_batches))
    objective.prepare(pairs.captions, tokenize, 0)
    objective.batch(pairs, np.arange(8), 0, torch.Generator(), torch.device("cpu"))  # what a method does once
    request.getfixturevalue("fake")
    objective.to(CUDA)
    for m in getattr(objective, "frozen", ()):
        m.to(CUDA)
    objective.train()
    gen = torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch, "Generator", lambda device: torch.default_generator)  # a GPU's own needs a driver

    def shorten(model, tokens):
        assert tokens.device.type == "cpu", "this waits for the GPU"
        return tokens

    monkeypatch.setattr(training_objective, "shorten", shorten)  # a fake tensor has no values to shorten by
    for module in [m for k, m in sys.modules.items() if k.startswith("parnb.cleaners") and hasattr(m, "per_image")]:
        monkeypatch.setattr(module, "per_image", lambda images, *_: images)  # likewise; PIL does it on the CPU anyway
    # a backward pass needs a driver
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, *inputs, **_: [torch.zeros_like(x) for x in inputs])
    batch = objective.batch(pairs, np.arange(8), 0, gen, CUDA)
    assert all(v.device == torch.device("cuda", 0) for v in batch.values() if torch.is_tensor(v))
    out = objective(**batch)
    assert out["loss"].requires_grad and all(v.device.type == "cuda" for v in out.values())


def test_measuring(request):
    model = open_clip.create_model("ViT-B-32-quickgelu")
    request.getfixturevalue("fake")
    x = pixels(random_pairs(4, 224).images, CUDA)
    e = model.to(CUDA).encode_image(normalise(make_trigger("wanet")(x, torch.arange(4), 0), model))
    assert e.device.type == "cuda"
