"""Networks cut down to layers: names, shapes, values as torchvision computes them, and weights that must fit."""

import math
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from fastclust.networks import Network, _Graph, build, list_layers, list_models, random_state
from fastclust.weights import load_weights, pretrained_file, read_weights

CPU = torch.device("cpu")


def loaded(model: str, layers: list[str], seed: int = 0) -> Network:
    network = Network(model, layers)
    network.load(random_state(model, seed), "random", CPU)
    return network


def values(network: Network, size: int = 64) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return network(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("vgg16", {"conv1_2": "features.2", "relu1_2": "features.3", "pool1": "features.4", "relu5_3": "features.29"}),
        ("vgg16", {"2": "features.3", "10": "features.22", "13": "features.29", "14": "classifier.1"}),
        ("vgg16", {"fc6": "classifier.0", "relu6": "classifier.1", "fc7": "classifier.3", "relu7": "classifier.4"}),
        ("vgg16", {"fc8": "classifier.6", "16": "classifier.6", "features": "features.30", "pool5": "features.30"}),
        ("vgg19", {"relu3_4": "features.17", "conv3_1": "features.10", "10": "features.22", "14": "features.31"}),
        ("vgg11_bn", {"conv1_1": "features.0", "bn1_1": "features.1", "relu1_1": "features.2", "1": "features.2"}),
        ("alexnet", {"2": "features.4", "6": "classifier.2", "8": "classifier.6"}),
        # conv1, then conv1 of the first block with its ReLU; conv2's batch norm is followed by a sum, so conv2 itself
        ("resnet18", {"1": "relu", "2": "layer1.0.relu", "3": "layer1.0.conv2", "layer1": "layer1.1.relu_1"}),
        # the shortcut's convolution runs after the block's two
        ("resnet18", {"6": "layer2.0.relu", "7": "layer2.0.conv2", "8": "layer2.0.downsample.0", "21": "fc"}),
        ("densenet121", {"2": "features.denseblock1.denselayer1.relu2"}),
        ("mobilenet_v2", {"1": "features.0.2", "features.0": "features.0.2"}),
    ],
)
def test_a_layer_has_the_names_of_torchvision_the_field_and_the_count(model: str, names: dict[str, str]) -> None:
    for name, node in names.items():
        assert Network(model, [name]).nodes == {name: node}


@pytest.mark.parametrize("model", ["vgg11", "resnet18", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"])
def test_every_name_of_torchvision_is_known(model: str) -> None:
    graph = _Graph(build(model))
    for name in get_graph_node_names(build(model), suppress_diff_warning=True)[1]:
        node = graph.resolve(name, model)
        assert node == name or node.startswith(f"{name}.")


def test_every_model_lists_its_layers() -> None:
    assert len(list_models()) >= 80
    for model in ("vgg19_bn", "regnet_y_400mf", "swin_t", "vit_b_32", "inception_v3"):
        layers = list_layers(model)
        assert {layer.kind for layer in layers} == {"conv", "dense"}
        assert layers[-1].shape == (1000,)
    shapes = {layer.node: (layer.kind, layer.shape, layer.names) for layer in list_layers("vgg16")}
    assert shapes["features.3"] == ("conv", (224, 224, 64), ("relu1_2", "2"))
    assert shapes["classifier.1"] == ("dense", (4096,), ("relu6", "14"))
    swin = {layer.node: layer.shape for layer in list_layers("swin_t")}
    assert swin["features.0.0"] == swin["features.1.0.add"] == (56, 56, 96), "channels first and channels last"


@pytest.mark.parametrize(
    ("model", "layers", "words"),
    [
        ("vgg16", ["relu1_9"], r"no layer 'relu1_9': did you mean relu1_"),
        ("vgg16", ["17"], r"no layer '17': it has 16 weight layers"),
        ("vgg16", ["0"], r"no layer '0': it has 16 weight layers"),
        ("resnet18", ["relu1_2"], r"no layer 'relu1_2'"),
        ("vgg61", ["1"], r"no classification model 'vgg61': did you mean vgg"),
        ("transformer", ["1"], r"no classification model 'transformer'"),
        ("vgg16", ["relu1_2", "2"], r"layers 2 and relu1_2 are one: features.3; ask for it once"),
        ("vgg16", ["2", "2"], r"ask for it once"),
    ],
)
def test_names_that_mean_nothing_are_answered_with_near_ones(model: str, layers: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Network(model, layers)


def test_a_convolution_is_copied_before_an_activation_in_place_overwrites_it() -> None:
    out = values(loaded("vgg11", ["conv1_1", "relu1_1"]))
    assert out["conv1_1"].min() < 0
    assert torch.equal(out["conv1_1"].relu(), out["relu1_1"])
    out = values(loaded("resnet18", ["layer1.0.bn2", "layer1.0.add", "layer1.0.relu_1"]))
    assert out["layer1.0.bn2"].min() < 0
    assert out["layer1.0.add"].min() < 0
    assert not torch.equal(out["layer1.0.bn2"], out["layer1.0.add"])
    assert torch.equal(out["layer1.0.add"].relu(), out["layer1.0.relu_1"])


@pytest.mark.parametrize(
    ("model", "nodes"),
    [
        ("resnet18", ["layer2.0.relu", "layer3.1.relu_1", "flatten", "fc"]),
        ("squeezenet1_1", ["features.3.cat", "features.12.expand3x3_activation"]),
        ("shufflenet_v2_x0_5", ["stage2.0.view_1", "conv5.2"]),
        ("convnext_tiny", ["features.1.0.add", "features.1.0.block.5"]),
        ("swin_t", ["features.1.0.add", "features.2.reduction"]),
    ],
)
def test_values_are_those_of_torchvision(model: str, nodes: list[str]) -> None:
    state = random_state(model, 1)
    network = Network(model, nodes)
    network.load(state, "random", CPU)
    whole = models.get_model(model, weights=None).eval()
    whole.load_state_dict(state)
    extractor = create_feature_extractor(whole, {node: node for node in nodes}, suppress_diff_warning=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = extractor(images)
    in_memory = torch.channels_last  # as the network has its weights: then the bits are the same
    same = extractor.to(memory_format=in_memory)(images)
    channels_last = {"features.1.0.block.5", "features.1.0.add", "features.2.reduction"} if model == "swin_t" else set()
    channels_last |= {"features.1.0.block.5"}
    shapes = network.shapes(64, 64)
    for node, value in values(network).items():
        other, equal = expected[node].detach(), same[node].detach()
        if other.ndim == 4 and node not in channels_last:
            other, equal = other.permute(0, 2, 3, 1), equal.permute(0, 2, 3, 1)
        assert torch.equal(value, equal), node
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
        assert value.is_contiguous()
        assert tuple(value.shape[1:]) == shapes[node]


def test_only_what_the_layers_need_is_run_and_kept() -> None:
    network = loaded("vgg16", ["relu1_2"])
    assert network.needed == ["features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias"]
    kept = sum(parameter.numel() for parameter in network._runner.parameters())
    assert kept == 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64
    assert all(parameter.device.type == "meta" for parameter in build("vgg16").parameters())


def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (random_state("squeezenet1_1", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    plain = models.squeezenet1_1(weights=None).state_dict()
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], plain[name]) for name in plain)
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])


def test_a_network_says_what_input_it_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"vgg11 cannot take 8 x 40 pixels: "):
        Network("vgg11", ["pool5"]).shapes(8, 40)
    with pytest.raises(ValueError, match=r"vit_b_32 cannot take 200 x 224 pixels: Wrong image height"):
        Network("vit_b_32", ["heads.head"]).shapes(200, 224)
    with pytest.raises(ValueError, match=r"maxvit_t cannot be built for 100 x 100 pixels: "):
        Network("maxvit_t", ["1"], 100)
    with pytest.raises(ValueError, match=r"gives \(n, 50, 768\) values: expected a map or a vector"):
        Network("vit_b_32", ["encoder.ln"]).shapes(224, 224)


@pytest.mark.parametrize("form", ["plain", "state_dict", "module", "old format", "safetensors", "half"])
def test_weights_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    state = random_state("squeezenet1_1", 0)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    wrapped: Any = state
    if form == "state_dict":
        wrapped = {"state_dict": state, "epoch": 3}
    if form == "module":
        wrapped = nn.DataParallel(models.squeezenet1_1()).state_dict()
        wrapped = {name: state[name.removeprefix("module.")] for name in wrapped}
    if form == "half":
        wrapped = {name: value.half() for name, value in state.items()}
    if form == "safetensors":
        save_file(dict(state), path)
    else:
        torch.save(wrapped, path, _use_new_zipfile_serialization=form != "old format")
    network = Network("squeezenet1_1", ["2"])
    network.load(read_weights(path), str(path), CPU)
    expected = values(loaded("squeezenet1_1", ["2"]))["2"]
    got = values(network)["2"]
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected, atol=1e-2) if form == "half" else torch.equal(got, expected)


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"a": Unsafe()}, tmp_path / "unsafe.pth")
    torch.save(random_state("squeezenet1_1", 0), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:100000])
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 3}, tmp_path / "number.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=rf"{path.name} is not a (file of plain weights|state dict)") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError, match=r"none\.pth is not a file: expected weights"):
        read_weights(tmp_path / "none.pth")


def test_weights_that_do_not_fit_are_named() -> None:
    state = dict(random_state("resnet18", 0))
    network = Network("resnet18", ["layer1.0.relu"])
    partial = {name: value for name, value in state.items() if not name.startswith("layer2")}
    network.load({**partial, "fc.weight": torch.zeros(7, 512)}, "file", CPU)  # another classifier does no harm
    with pytest.raises(ValueError, match=r"w\.pth misses 25 of the 50 tensors .*: layer2\.0\.conv1\.weight, .* \.\.\."):
        Network("resnet18", ["layer2"]).load({k: v for k, v in partial.items() if "layer2" not in k}, "w.pth", CPU)
    with pytest.raises(
        ValueError, match=r"another model: conv1\.weight is \(16, 3, 3, 3\), resnet18 needs \(64, 3, 7, 7\)"
    ):
        Network("resnet18", ["2"]).load({**state, "conv1.weight": torch.zeros(16, 3, 3, 3)}, "w.pth", CPU)
    with pytest.raises(ValueError, match=r"another model: it has features\.0\.weight, .* resnet18 needs conv1\.weight"):
        Network("resnet18", ["2"]).load(random_state("vgg11", 0), "w.pth", CPU)
    for value in (math.nan, math.inf):
        bad = {**state, "bn1.bias": torch.full((64,), value), "fc.bias": torch.full((1000,), math.nan)}
        with pytest.raises(ValueError, match=r"w\.pth: bn1\.bias holds NaN or infinite values"):
            Network("resnet18", ["2"]).load(bad, "w.pth", CPU)
    without = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    Network("resnet18", ["fc"]).load(without, "w.pth", CPU)


def test_old_names_of_published_weights_are_understood() -> None:
    state = random_state("densenet121", 0)
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for name, value in state.items()}
    network = Network("densenet121", ["2"])
    network.load(old, "old", CPU)
    assert torch.equal(values(network)["2"], values(loaded("densenet121", ["2"]))["2"])
    module = build("vit_b_32")
    state = module.state_dict()
    state.update({name: torch.full(value.shape, float(number)) for number, (name, value) in enumerate(state.items())})
    old = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for name, v in state.items()}
    ordered: Any = type(state)(old)
    ordered._metadata = {name: {"version": 1} for name in state._metadata}  # type: ignore[attr-defined]
    load_weights(module, ordered, list(state), "old", "vit_b_32")
    assert torch.equal(
        module.state_dict()["encoder.layers.encoder_layer_0.mlp.0.weight"],
        state["encoder.layers.encoder_layer_0.mlp.0.weight"],
    )


def test_pretrained_weights_out_of_reach_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ConnectionError, match=r"vgg16 are not in .* cannot be .*no route.*--weights PATH.*random"
    ) as error:
        pretrained_file("vgg16")
    assert "\n" not in str(error.value)
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_text("half a download")
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth is not what was published .*: delete it"):
        pretrained_file("vgg16")


def test_pretrained_weights_in_the_cache_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("fastclust.weights.file_sha256", lambda path: "b8a52dc0" + "0" * 56)
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    torch.save(random_state("squeezenet1_1", 0), file)
    assert pretrained_file("squeezenet1_1") == (file, "SqueezeNet1_1_Weights.IMAGENET1K_V1")
