"""Receptive fields against backpropagation: the pixels that a unit's gradient reaches, and their centre."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastclust.networks import Network
from fastclust.receptive import Field, receptive_fields

pytestmark = pytest.mark.usefixtures("one_thread")


def positive(network: Network) -> Callable[[Tensor], dict[str, Tensor]]:
    """The network's layers with positive weights, and means in place of maxima: no path is cut or cancels another."""
    random = torch.Generator().manual_seed(0)
    module = copy.deepcopy(network.outline).to_empty(device="cpu").double()
    for parameter in module.parameters():
        spread = max(parameter[0].numel(), 1) if parameter.ndim else 1
        parameter.data = (torch.rand(parameter.shape, generator=random, dtype=torch.float64) + 0.5) / spread
    for name, one in list(module.named_modules()):
        if isinstance(one, nn.BatchNorm2d):
            one.running_mean, one.running_var = torch.zeros_like(one.weight), torch.ones_like(one.weight)
        if isinstance(one, nn.MaxPool2d):
            owner, _, leaf = name.rpartition(".")
            pool = nn.AvgPool2d(one.kernel_size, one.stride, one.padding, one.ceil_mode)
            setattr(module.get_submodule(owner), leaf, pool)
    module.eval()
    return lambda pixels: module(pixels, lambda layer, values: values.clone())


def reached(values: Tensor, pixels: Tensor, row: int, column: int) -> np.ndarray:
    """The pixels (H, W) that the gradient of a unit, summed over its channels, reaches."""
    unit = values[0, row, column] if values.ndim == 4 else values[0]
    (gradient,) = torch.autograd.grad(unit.sum(), pixels, retain_graph=True)
    return (gradient[0] != 0).any(dim=0).numpy()


def box_of(support: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(support.any(axis=1)), np.flatnonzero(support.any(axis=0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


CASES = [
    ("vgg19", ["conv1_1", "relu1_2", "pool1", "relu2_2", "conv3_1", "relu3_4", "pool3", "relu4_1"], (90, 107)),
    ("vgg19_bn", ["relu2_2"], (33, 40)),
    ("resnet18", ["relu", "maxpool", "layer1", "layer2.0.downsample.0", "layer2.0.relu", "layer2.1.add"], (101, 96)),
    ("resnet18", ["layer4", "avgpool", "fc"], (96, 70)),
    ("squeezenet1_1", ["1", "features.2", "features.3.cat", "features.5", "features.8", "classifier.1"], (100, 83)),
    ("squeezenet1_0", ["features.0", "features.6", "flatten"], (70, 96)),
    ("alexnet", ["features.2", "features.5", "avgpool", "classifier.1"], (150, 131)),
    ("googlenet", ["maxpool2", "inception3a.cat"], (72, 90)),  # ceil_mode, and branches of several sizes
    ("densenet121", ["features.denseblock1.denselayer2.conv2", "features.transition1"], (64, 72)),
    ("shufflenet_v2_x0_5", ["stage2.1"], (64, 80)),  # channels are split and shuffled
    ("convnext_tiny", ["features.1.0.add", "features.2"], (64, 72)),  # channels first and last
    ("efficientnet_b0", ["features.1.0.block.0", "features.1.0.block.1"], (64, 72)),  # a gate sees everything
]


@pytest.mark.parametrize(("model", "layers", "size"), CASES, ids=[f"{model}-{layers[0]}" for model, layers, _ in CASES])
def test_fields_are_where_gradients_reach(model: str, layers: list[str], size: tuple[int, int]) -> None:
    network = Network(model, layers)
    fields = receptive_fields(network, *size)
    module = positive(network)
    pixels = (torch.rand(1, 3, *size, dtype=torch.float64) + 0.5).requires_grad_()
    values = module(pixels)
    for layer in layers:
        h, w = values[layer].shape[1:3] if values[layer].ndim == 4 else (1, 1)
        field = fields[layer]
        assert (len(field.rows.low), len(field.columns.low)) == (h, w)
        for row, column in {(0, 0), (h // 2, w // 2), (h - 1, w - 1), (h // 3, w - 1)}:
            assert field.box(row, column) == box_of(reached(values[layer], pixels, row, column)), (layer, row, column)


def inner(field: Field, height: int, width: int) -> list[tuple[int, int]]:
    """Units whose field no edge clips."""
    ends = []
    for axis, side in ((field.rows, height), (field.columns, width)):
        first = axis.start + axis.jump * np.arange(len(axis.low))
        ends.append(np.flatnonzero((first >= 0) & (first + axis.size <= side)))
    return [(int(row), int(column)) for row in ends[0][[0, -1]] for column in ends[1][[0, -1]]]


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("vgg19", "relu1_2"),
        ("vgg19", "pool2"),
        ("vgg19", "conv3_1"),
        ("resnet18", "maxpool"),
        ("resnet18", "layer1"),
        ("squeezenet1_1", "features.3.cat"),
        ("squeezenet1_1", "features.5"),
    ],
)
def test_sizes_jumps_and_centres_of_units_away_from_the_edges(model: str, layer: str) -> None:
    network, (height, width) = Network(model, [layer]), (89, 96)
    field = receptive_fields(network, height, width)[layer]
    pixels = (torch.rand(1, 3, height, width, dtype=torch.float64) + 0.5).requires_grad_()
    values = positive(network)(pixels)[layer]
    for row, column in inner(field, height, width):
        top, left, bottom, right = box_of(reached(values, pixels, row, column))
        assert (bottom - top, right - left) == field.size
        assert field.rows.centres()[row] == (top + bottom - 1) / 2
        assert field.columns.centres()[column] == (left + right - 1) / 2
    (row, column), *_ = inner(field, height, width)
    further = box_of(reached(values, pixels, row + 1, column + 1))
    assert (further[0] - field.rows.low[row], further[1] - field.columns.low[column]) == field.jump


def test_sizes_that_are_known() -> None:
    """Of VGG and ResNet, from Araujo, Norris and Sim 2019 and by hand."""
    vgg = receptive_fields(Network("vgg16", ["relu1_2", "relu2_2", "relu5_3", "pool5"]), 224, 224)
    assert [field.size[0] for field in vgg.values()] == [5, 14, 196, 212]
    assert [field.jump[0] for field in vgg.values()] == [1, 2, 16, 32]
    resnet = receptive_fields(Network("resnet18", ["layer4", "fc"]), 224, 224)
    assert resnet["layer4"].size == (435, 435)
    assert resnet["layer4"].jump == (32, 32)
    assert (resnet["fc"].size, resnet["fc"].box(0, 0)) == ((224, 224), (0, 0, 224, 224))


def test_what_mixes_places_sees_the_whole_image() -> None:
    for model, layer in (("vit_b_32", "heads.head"), ("swin_t", "features.1.0.add"), ("vgg11", "fc6")):
        field = receptive_fields(Network(model, [layer]), 224, 224)[layer]
        rows, columns = len(field.rows.low), len(field.columns.low)
        assert field.box(rows - 1, 0) == field.box(0, columns - 1) == (0, 0, 224, 224)


def test_a_size_that_the_network_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"vgg11 cannot take 8 x 40 pixels: "):
        receptive_fields(Network("vgg11", ["pool5"]), 8, 40)


class Holes(nn.Module):
    """A dilated, padded convolution and pooling behind a floor, which no model of torchvision's has by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, stride=2)
        self.second = nn.Conv2d(2, 2, (3, 2), dilation=(3, 2), padding=(4, 1), bias=False)
        self.pool = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)

    def forward(self, pixels: Tensor) -> Any:
        return self.pool(self.second(self.first(pixels)))


def test_dilation_padding_and_ceil_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclust.networks.build", lambda model, size=224: Holes())
    network = Network("holes", ["pool"])
    field = receptive_fields(network, 30, 33)["pool"]
    pixels = (torch.rand(1, 3, 30, 33, dtype=torch.float64) + 0.5).requires_grad_()
    values = positive(network)(pixels)["pool"]
    for row in range(values.shape[1]):
        for column in range(values.shape[2]):
            assert field.box(row, column) == box_of(reached(values, pixels, row, column))


def test_every_unit_is_where_its_neighbours_lead_to_expect() -> None:
    field = receptive_fields(Network("vgg11", ["relu2_1"]), 64, 80)["relu2_1"]
    for axis, side in ((field.rows, 64), (field.columns, 80)):
        first = axis.start + axis.jump * np.arange(len(axis.low))
        assert np.array_equal(axis.low, np.maximum(first, 0))
        assert np.array_equal(axis.high, np.minimum(first + axis.size, side) - 1)
