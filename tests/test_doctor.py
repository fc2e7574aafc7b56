"""Other people's models load whatever their layout, and `parnb doctor` sees what is wrong with a model or its data.

All models are tiny; those of transformers are random, or the shipped ViT in transformers' layout."""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import env, fails_with, several
from safetensors.torch import load_file, save_file
from small_scale import make_model
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from parnb.core import PRETRAINED, ParnbError
from parnb.data.scenes import scenes
from parnb.lazy import open_clip
from parnb.models.clip import image_size, load_clip, save_clip
from parnb.models.folders import architecture_of
from parnb.models.formats import _LAYERS, fill_model, read_checkpoint
from parnb.study.checks import FAILS, OK, WARNING, check_activation, check_training
from parnb.study.doctor import examine, preflight

TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
VISION, TEXT = dict(image_size=32, patch_size=8), dict(vocab_size=90, max_position_embeddings=12, eos_token_id=89)


@pytest.fixture(scope="module")
def shipped():
    return load_clip("tiny-vit", "emoji")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "200 scenes as a csv of pairs and as a folder of classes."
    folder, dev = tmp_path_factory.mktemp("data"), scenes("dev", 200)
    lines = ["image,caption"]
    for i in range(len(dev)):
        name = dev.names[dev.labels[i]].replace(" ", "_")
        (folder / "val" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(dev.images[i]).save(folder / "val" / name / f"{i}.png")
        lines.append(f'val/{name}/{i}.png,"{dev.captions[i]}"')
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


def of_transformers(model, **change) -> CLIPModel:
    "The shipped ViT as transformers builds it."
    state, ours = {}, {v: k for k, v in _LAYERS.items()}
    for key, value in model.state_dict().items():
        key = re.sub(r"attn\.in_proj_", "attn.in_proj.", key)
        for a in sorted(ours, key=len, reverse=True):
            key = re.sub(rf"(^|(?<=\.)){re.escape(a)}(?=\.|$)", ours[a], key)
        parts = value.chunk(3) if "in_proj" in key else ()
        whole = value.T if key.endswith("projection.weight") else value
        state |= {key.replace("in_proj", f"{p}_proj"): v for p, v in zip("qkv", parts)} if parts else {key: whole}
    tower = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4, hidden_act="gelu") | change
    vision = tower | dict(num_hidden_layers=4, image_size=64, patch_size=8)
    text = tower | dict(num_hidden_layers=2, vocab_size=1490, max_position_embeddings=24, eos_token_id=1489)
    theirs = CLIPModel(CLIPConfig(projection_dim=128, vision_config=vision, text_config=text)).eval()
    theirs.load_state_dict(state)
    return theirs


def agree(ours, theirs, vocabulary=90, length=12, end=89):
    "Whether both give the same embeddings, to 1e-5."
    x = torch.rand(2, 3, image_size(ours), image_size(ours))
    t = torch.randint(1, min(80, vocabulary), (3, length))
    t[:, 5], t[:, 6:] = end, 0
    pairs = (ours.encode_image(x), theirs.get_image_features(x)), (ours.encode_text(t), theirs.get_text_features(t))
    return all(torch.allclose(a, b.pooler_output, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize(
    "tower, text, saving",
    [
        (dict(hidden_act="quick_gelu"), {}, {}),
        (dict(hidden_act="gelu", intermediate_size=85), {}, {}),
        (dict(layer_norm_eps=0.01), {}, {}),
        (dict(num_attention_heads=4), dict(eos_token_id=83), {}),
        ({}, dict(eos_token_id=2), dict(max_shard_size="50KB")),
    ],
    ids=["quick_gelu", "gelu", "eps", "eos", "shards"],
)
@torch.no_grad()
def test_folders_of_transformers(tmp_path, tower, text, saving):
    "They load, and can be saved and loaded again, with the same embeddings."
    config = CLIPConfig(
        projection_dim=16, vision_config=TOWER | VISION | tower, text_config=TOWER | TEXT | tower | text
    )
    theirs, end = CLIPModel(config).eval(), text.get("eos_token_id", 89)
    theirs.save_pretrained(tmp_path / "theirs", **saving)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 or not saving
    ours = load_clip(tmp_path / "theirs")[0]
    assert agree(ours, theirs, end=89 if end == 2 else end)
    (tmp_path / "ours").mkdir()
    save_clip(ours, tmp_path / "ours", architecture_of(tmp_path / "theirs"))
    name = architecture_of(tmp_path / "ours")
    open_clip.factory._MODEL_CONFIGS.pop(name)  # another process does not know it yet
    again = load_clip(tmp_path / "ours")[0]
    assert agree(again, theirs, end=89 if end == 2 else end) and architecture_of(tmp_path / "ours") == name
    save_clip(again, tmp_path, name)


def test_what_a_folder_of_transformers_states(tmp_path, shipped):
    "The architecture, the activation, the preprocessing, and the tokenizer of an architecture that open_clip knows."
    model, _, tokenizer = shipped
    theirs = of_transformers(model)
    theirs.save_pretrained(tmp_path)
    mean = [0.5, 0.5, 0.5]
    CLIPImageProcessor(size=dict(height=64, width=64), image_mean=mean, do_center_crop=False).save_pretrained(tmp_path)
    assert architecture_of(tmp_path) == "tiny-vit"
    ours, _, tok = load_clip("tiny-vit", tmp_path)
    assert all(torch.allclose(v, model.state_dict()[k]) for k, v in ours.state_dict().items())
    assert torch.equal(tok("a banana"), tokenizer("a banana"))
    cfg = open_clip.get_model_preprocess_cfg(ours)
    assert (list(cfg["mean"]), cfg["resize_mode"]) == (mean, "squash")
    with pytest.raises(ParnbError, match="holds a tiny-vit, not a tiny-rn"):
        load_clip("tiny-rn", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "weights.bin")
    state = load_clip("tiny-vit", tmp_path / "weights.bin")[0].state_dict()
    assert all(torch.allclose(v, model.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize(
    "file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin"]
)
def test_folders_of_the_hub(tmp_path, shipped, file):
    "open_clip's weights are found beside those of transformers, whose names may be the same."
    made = json.loads((PRETRAINED / "tiny-vit/open_clip_config.json").read_text())
    del made["name"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(made))
    of_transformers(shipped[0]).save_pretrained(tmp_path)
    if file != "model.safetensors":
        save = save_file if file.endswith("safetensors") else torch.save
        save(shipped[0].state_dict(), tmp_path / file)
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    model = load_clip(tmp_path)[0]
    assert architecture_of(tmp_path) == "tiny-vit"
    assert all(torch.allclose(v, shipped[0].state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "model.", "module.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.module."]
)
def test_prefixes_and_what_lies_beside_the_weights(tmp_path, shipped, prefix):
    "Prefixes in any combination; numbers and arrays of numpy, of both its generations; a namespace."
    model = shipped[0]
    beside = dict(best=np.float64(0.5), epoch=np.int64(3), done=np.bool_(True), losses=np.arange(4, dtype=np.float32))
    content = dict(state_dict={prefix + k: v for k, v in model.state_dict().items()}, **beside)
    torch.save(content | dict(args=argparse.Namespace(lr=np.float32(0.1))), tmp_path / "a.pt")
    state, _ = read_checkpoint(tmp_path / "a.pt")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch.save(content, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(ParnbError, match="pickle protocol"):
        read_checkpoint(tmp_path / "a.pt")
    torch.save(content, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "b.pt").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "b.pt").write_bytes(old)
    assert set(read_checkpoint(tmp_path / "b.pt")[0]) == set(model.state_dict())


def test_two_models_in_one_file_are_an_error(tmp_path, shipped):
    state = shipped[0].state_dict()
    torch.save({f"{p}.{k}": v for p in ("model", "module") for k, v in state.items()}, tmp_path / "ema.pt")
    with pytest.raises(ParnbError, match="twice"):
        read_checkpoint(tmp_path / "ema.pt")


def test_values_that_are_not_finite_never_load(tmp_path, shipped):
    for value in (float("nan"), float("inf")):
        state = {k: v.clone() for k, v in shipped[0].state_dict().items()}
        state["ln_final.bias"][3] = value
        with pytest.raises(ParnbError, match="not finite in 1 of .* 'ln_final.bias'"):
            fill_model(open_clip.create_model("tiny-vit"), state, "tiny-vit", "a.pt")


def test_nobody_is_told_to_delete_a_folder_of_theirs(tmp_path, shipped):
    "Whatever is wrong with it."
    of_transformers(shipped[0]).save_pretrained(tmp_path / "theirs")
    shutil.copytree(PRETRAINED / "tiny-vit", tmp_path / "ours")
    damages = {
        "no weights": lambda f: (f / "model.safetensors").unlink(),
        "cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "empty": lambda f: (f / "model.safetensors").write_bytes(b""),
        "no configuration": lambda f: [p.unlink() for p in f.glob("*config.json")],
        "cut configuration": lambda f: [p.write_text("{") for p in f.glob("*config.json")],
        "another configuration": lambda f: [p.write_text('{"model_type": "siglip"}') for p in f.glob("*config.json")],
        "an old record": lambda f: (f / "record.json").write_text('{"sha256": "0"}'),
    }
    for whose in ("theirs", "ours"):
        for name, damage in damages.items():
            folder = Path(shutil.copytree(tmp_path / whose, tmp_path / f"{whose} {name}"))
            damage(folder)
            with pytest.raises(ParnbError) as e:
                load_clip(folder)
            told = str(e.value)
            assert str(folder) in told and "delete" not in told.replace(str(tmp_path), ""), told


def test_openai_settles_the_activation(tmp_path, shipped, capsys):
    "Its own layout shows QuickGELU: under a name without it there is a warning, and the doctor objects."
    model = shipped[0]
    config = open_clip.get_model_config("tiny-vit") | dict(quick_gelu=True)
    (tmp_path / "tiny-vit-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    try:
        about = dict(input_resolution=torch.tensor(64), context_length=torch.tensor(24), vocab_size=torch.tensor(1490))
        torch.save(model.state_dict() | about, file := tmp_path / "openai.pt")
        assert read_checkpoint(file)[1] == ("tiny-vit-quickgelu",)
        for name, state in (("tiny-vit", FAILS), ("tiny-vit-quickgelu", OK)):
            net = load_clip(name, file)[0]
            assert ("WARNING" in capsys.readouterr().err) == (state == FAILS)
            assert check_activation(name, net, name, file).state == state
    finally:
        open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path)
        del open_clip.factory._MODEL_CONFIGS["tiny-vit-quickgelu"]


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit", "RN50", "ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_random_weights_are_seen(name):
    "In towers of all kinds; the meta device would have no values, so the large ones are cut."
    config = open_clip.get_model_config(name)
    if name[:4] != "tiny":
        config["text_cfg"] |= dict(layers=1, vocab_size=100)
        config["vision_cfg"] |= {} if "timm_model_name" in config["vision_cfg"] else dict(width=64)
        if name == "ViT-B-16-SigLIP":
            config["vision_cfg"] |= dict(
                timm_model_name="vit_tiny_patch16_224", timm_pool="", timm_model_pretrained=False
            )
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    kind = kind if config.pop("custom_text", "multimodal_cfg" in config) else open_clip.CLIP
    assert check_training(kind(**config)).state == FAILS


COMMANDS = dict(
    good=[
        "--model",
        "{theirs}",
        "--pairs",
        "{data}/pairs.csv",
        "--images",
        "{data}/val",
        "--templates",
        "{made}/plain",
    ],
    misread=["--model", "{theirs}", "--images", "{data}/val"],
    random=["--model", "{random}"],
    nothing=["--model", "tiny-vit"],
    nan=["--model", "tiny-vit", "--checkpoint", "{made}/nan.safetensors"],
    shuffled=["--model", "tiny-vit", "--checkpoint", "emoji", "--pairs", "{made}/shuffled.csv"],
    misnamed=["--model", "tiny-vit", "--checkpoint", "emoji", "--images", "{data}/val", "--names", "{made}/names.txt"],
    missing=["--model", "tiny-vit", "--checkpoint", "emoji", "--images", "{data}/nowhere"],
    alone=["--images", "{data}/val"],
    machine=[],
)


@pytest.fixture(scope="module")
def told(data, shipped, tmp_path_factory):
    "What `parnb doctor` says of each command above."
    made = tmp_path_factory.mktemp("made")
    of_transformers(shipped[0]).save_pretrained(made / "theirs")
    make_model(made / "random", looks_trained=False)
    save_file(
        {k: v * float("nan") if v.is_floating_point() else v for k, v in shipped[0].state_dict().items()},
        made / "nan.safetensors",
    )
    head, *rows = (data / "pairs.csv").read_text().splitlines()
    images, captions = zip(*(r.split(",", 1) for r in rows))
    moved = [f"{data}/{i},{c}" for i, c in zip(images, captions[7:] + captions[:7])]
    (made / "shuffled.csv").write_text("\n".join([head, *moved]) + "\n")
    (made / "plain").write_text("a photo of a {}\n")
    names = sorted(p.name for p in (data / "val").iterdir())
    (made / "names.txt").write_text("\n".join(names[3:] + names[:3]).replace("_", " "))
    places = dict(data=data, made=made, theirs=made / "theirs", random=made / "random")
    commands = [["doctor", *(w.format(**places) for w in c)] for c in COMMANDS.values()]
    return dict(zip(COMMANDS, several(commands, env(made / "data"))))


def states(p) -> dict[str, str]:
    "Check -> state."
    return {line.split()[1]: line.split()[0] for line in p.stdout.splitlines()}


def test_doctor_of_a_good_model(told):
    "Every check is ok, and its line shows classes and a caption; only the pairs are too few for a batch."
    p = told["good"]
    assert p.returncode == 0, p.stdout + p.stderr
    wanted = "weights training activation tokenizer preprocessing pairs matching images classes accuracy prompts"
    assert states(p) == dict.fromkeys(wanted.split(), OK) | dict(amounts=WARNING)
    assert "batches of 2,048 pairs" in p.stdout and "--calibrate" not in p.stdout
    assert "abacus, accordion" in p.stdout and "the first is 'a" in p.stdout and "100 read" in p.stdout


def test_templates_that_the_model_misreads(told):
    "The small model's captions had few of the words of open_clip's templates."
    p = told["misread"]
    assert p.returncode == 0 and {k for k, v in states(p).items() if v != OK} == {"prompts"}, p.stdout + p.stderr
    line = next(t for t in p.stdout.splitlines() if t.split()[1] == "prompts")
    found = [float(x) for x in re.findall(r"([\d.]+)%", line)]
    assert "of 80 templates tried" in line and found[0] < found[1] - 2 and "--templates" in line


def test_doctor_of_wrong_models_and_data(told):
    "Each mistake is one line with what to do; a failure is the exit code 1."
    assert states(told["random"])["training"] == FAILS
    assert states(told["nan"]) == dict(weights=FAILS)
    assert states(told["missing"])["images"] == FAILS
    for name in ("random", "nan", "missing"):
        fails_with(told[name], "1 of the checks above has failed")
    fails_with(told["nothing"], "random weights")
    fails_with(told["alone"], "--images needs --model")
    assert states(told["shuffled"])["matching"] == WARNING and told["shuffled"].returncode == 0
    assert states(told["misnamed"])["accuracy"] == WARNING and told["misnamed"].returncode == 0
    assert told["machine"].returncode == 0 and "GB free" in told["machine"].stdout


def test_preflight_is_done_once(data, tmp_path, monkeypatch, capsys):
    "A failure stops with its text; warnings are printed each time, and what was checked is not checked again."
    from parnb.study import artifacts, doctor

    monkeypatch.setattr(artifacts, "ARTIFACTS", tmp_path / "artifacts")
    encoders = dict(vit=dict(model="tiny-vit", pretrained="emoji"), random=dict(model="tiny-vit"))
    names = [f"n{i:08}" for i, _ in enumerate((data / "val").iterdir())]
    sources = dict(only=True, images=dict(source=str(data / "val"), names=names))
    (tmp_path / "mine.json").write_text(json.dumps(dict(base="tiny", encoders=encoders, sources=sources)))
    with pytest.raises(ParnbError, match="random weights in the image tower and the text tower"):
        preflight(str(tmp_path / "mine.json"), "random")
    first = preflight(str(tmp_path / "mine.json"), "vit")
    assert "WARNING: classes" in (told := capsys.readouterr().err) and "WARNING: accuracy" in told
    monkeypatch.setattr(doctor, "examine", lambda *a: pytest.fail("checked again"))
    assert preflight(str(tmp_path / "mine.json"), "vit") == first
    assert "WARNING: classes" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert preflight(str(tmp_path / "mine.json"), "vit") == []


def test_damaged_images_are_told(data, tmp_path):
    "The first of them is named."
    shutil.copytree(data / "val", tmp_path / "val")
    file = sorted((tmp_path / "val").rglob("*.png"))[0]
    file.write_bytes(b"no image")
    sources = dict(only=True, images=str(tmp_path / "val"))
    encoders = dict(vit=dict(model="tiny-vit", pretrained="emoji"))
    (tmp_path / "mine.json").write_text(json.dumps(dict(base="tiny", encoders=encoders, sources=sources)))
    found = {c.name: c for c in examine(str(tmp_path / "mine.json"), "vit")}
    assert found["images"].state == WARNING and file.name in found["images"].text
