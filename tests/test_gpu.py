"Where tensors lie when there is a GPU, without one: torch's fake tensors have a device and a shape, and refuse to meet one of another device. Needs a torch that was built with CUDA."
import numpy as np
import open_clip
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from parnb import cleaning
from parnb.cleaning import METHODS, Recipe
from parnb.data import Pairs
from parnb.models import normalise, pixels
from parnb.triggers import TRIGGERS, make_trigger

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason='this torch was built without CUDA')
CUDA = torch.device('cuda')


@pytest.fixture
def fake():
    kept = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot become fake in place
    try:
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()): yield
    finally: torch.__future__.set_overwrite_module_params_on_conversion(kept)


def words(texts):
    "Tokens without a vocabulary: a start, some words, the end, the largest number, where CLIP pools."
    return torch.tensor([[49406, *(i+2 for i in range(len(t.split()))), 49407, *[0]*(75-len(t.split()))] for t in texts])


def some(count, side):
    rng = np.random.default_rng(0)
    return Pairs(rng.integers(0, 255, (count, side, side, 3), dtype=np.uint8), [f'a photo of number {i} there' for i in range(count)], np.arange(count), np.full(count, -1), 'noise')


@pytest.mark.parametrize('side', [224, 336])
@pytest.mark.parametrize('name', [t for t in TRIGGERS if t != 'badclip'])
def test_triggers(fake, name, side):
    x = torch.rand(4, 3, side, side, device=CUDA)
    y = make_trigger(name)(x, torch.arange(4), 0)
    assert (y.device.type, y.shape) == ('cuda', x.shape)


@pytest.mark.parametrize('name', ['RN50-quickgelu', 'ViT-B-32-quickgelu'])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('pieces', [1, 2])
def test_a_step(method, name, pieces, request, monkeypatch):
    "Batch and losses of each method: no tensor is left on the CPU, and none is waited for."
    pairs, recipe = some(8, 224), Recipe(epochs=1, batch_size=8, lr=1e-4, noise=0.2, cutout=0.5, batch_norm='running', pieces=pieces)
    make = lambda: open_clip.create_model(name)
    objective = METHODS[method](make(), recipe, **(dict(reference=make()) if method == 'par' else {}))
    objective.prepare(pairs.captions, words, 0)
    request.getfixturevalue('fake')
    objective.to(CUDA)
    for m in getattr(objective, 'frozen', ()): m.to(CUDA)
    objective.train()
    gen = torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch, 'Generator', lambda device: torch.default_generator)  # a GPU's own needs a driver
    def shorten(model, tokens):
        assert tokens.device.type == 'cpu', 'a GPU is waited for'
        return tokens
    monkeypatch.setattr(cleaning, 'shorten', shorten)  # a fake tensor has no numbers to cut by
    monkeypatch.setattr(cleaning, 'per_image', lambda images, *_: images)  # likewise; it is PIL's work anyway
    batch = objective.batch(pairs, np.arange(8), 0, gen, CUDA)
    assert all(v.device == torch.device('cuda', 0) for v in batch.values() if torch.is_tensor(v))
    out = objective(**batch)  # the way back needs a driver
    assert out['loss'].requires_grad and all(v.device.type == 'cuda' for v in out.values())


def test_measuring(request):
    model = open_clip.create_model('ViT-B-32-quickgelu')
    request.getfixturevalue('fake')
    x = pixels(some(4, 224).images, CUDA)
    e = model.to(CUDA).encode_image(normalise(make_trigger('wanet')(x, torch.arange(4), 0), model))
    assert e.device.type == 'cuda'
