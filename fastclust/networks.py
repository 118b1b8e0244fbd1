"""torchvision's classification models as graphs of named layers, cut down to what the layers asked for need.

A layer is a node of the model's graph, under torchvision's name for it (`features.3`, `layer1.0.relu`); a module's name
means the module's last node. VGG's layers have the field's names too (`conv1_2`, `relu1_2`, `pool1`, `fc6`, `relu6`).
In any model the number n means the n-th weight layer (Conv2d or Linear, in the order in which they are executed, so the
convolution of a shortcut counts where it runs), after the activation that directly follows it or its batch norm; where
none follows, the weight layer itself. Weights inside an attention node are not counted.

Several activations work in place. A layer's values are handed on as they arise, before a later node can overwrite them.
"""

import copy
import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.feature_extraction import NodePathTracer

from fastclust.weights import load_weights

BATCH = 13  # the batch of the shape pass: a first dimension of 13 is the batch's
ACTIVATIONS = frozenset(["relu", "relu_", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid"])
FIRST, LAST, UNKNOWN = "channels first", "channels last", "channels anywhere"


@dataclass(frozen=True)
class LayerInfo:
    """A layer that can be asked for: its shape is (height, width, channels), or (channels,) where it is dense."""

    node: str
    names: tuple[str, ...]  # other names of the same node
    kind: str  # "conv" or "dense"
    shape: tuple[int, ...]


class Network:
    """A model cut down to the layers asked for, without weights until `load`.

    Raises ValueError for an unknown model or layer (with the nearest names), for two names of one node, and for a layer
    that gives neither a map nor a vector an image.
    """

    def __init__(self, model: str, layers: Sequence[str], size: int = 224) -> None:
        self.model = model
        self._module = build(model, size)
        graph = _Graph(self._module)
        self.nodes = {name: graph.resolve(name, model) for name in layers}
        for name, node in self.nodes.items():
            twins = [other for other in layers if self.nodes[other] == node]
            if len(twins) > 1 or list(layers).count(name) > 1:
                raise ValueError(f"layers {' and '.join(sorted(set(twins)))} are one: {node}; ask for it once")
        self._layouts = {name: graph.layouts[graph.nodes[node]] for name, node in self.nodes.items()}
        self._pruned = graph.prune(self.nodes)
        self._runner = fx.GraphModule(self._module, self._pruned).eval()
        self.outline = copy.deepcopy(self._runner).to("meta")  # shapes alone, also once the weights are loaded
        own = self._module.state_dict()
        self.needed = [name for name in self._runner.state_dict() if name in own]
        self._shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}

    def shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shape of each layer for an input of height x width pixels: (h, w, channels) or (channels,).

        Raises ValueError with the network's own reason where it cannot take such an input.
        """
        if (height, width) not in self._shapes:
            try:
                with torch.inference_mode():
                    values = self.outline(torch.empty(BATCH, 3, height, width, device="meta"), _as_it_is)
            except (RuntimeError, ValueError, AssertionError) as error:
                why = str(error).strip().split("\n")[0]
                raise ValueError(f"{self.model} cannot take {height} x {width} pixels: {why}") from error
            for name, value in values.items():
                if value.shape[0] != BATCH or not (
                    value.ndim == 2 or (value.ndim == 4 and self._layouts[name] in (FIRST, LAST))
                ):
                    raise ValueError(
                        f"layer {name} of {self.model} gives (n, {', '.join(map(str, value.shape[1:]))}) values: "
                        f"expected a map or a vector for each image; `fastclust layers {self.model}` lists those"
                    )
            self._shapes[height, width] = {name: tuple(value.shape[1:]) for name, value in values.items()}
        return self._shapes[height, width]

    def sources(self) -> dict[str, fx.Node]:
        """The node of `outline` whose values each layer has."""
        handed = cast(dict[str, fx.Node], self.outline.graph.output_node().args[0])
        return {name: cast(fx.Node, node.args[2]) for name, node in handed.items()}

    def load(self, state: dict[str, Tensor], source: str, device: torch.device) -> None:
        """Take weights, once (see load_weights for what raises), and move to a device, channels last in memory."""
        load_weights(self._module, state, self.needed, source, self.model)
        self._runner = fx.GraphModule(self._module, self._pruned).eval()
        self._runner.to(device).to(memory_format=torch.channels_last)
        del self._module  # with the weights of the layers that are not needed

    def __call__(self, images: Tensor, keep: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the layers of normalised (n, 3, H, W) float32 images: by name what `keep` returns of them.

        keep: called with a layer's name and values, a view (n, h, w, c) or (n, c), as they arise; what it returns must
        not be that view where a later node works in place. Without it: contiguous copies.
        """
        values: dict[str, Tensor] = self._runner(images, _copy if keep is None else keep)
        return values


def list_models() -> list[str]:
    """Names of torchvision's classification models."""
    return list(models.list_models(module=models))


def list_layers(model: str) -> list[LayerInfo]:
    """List every layer of a model that can be asked for, in order of execution, with shapes for 224 x 224 pixels."""
    module = build(model)
    graph = _Graph(module)
    shapes = _ShapePass(fx.GraphModule(module, graph.graph).to("meta")).shapes()
    names: dict[str, list[str]] = {}
    for alias, node in graph.aliases(model).items():
        names.setdefault(node, []).append(alias)
    found = []
    for name, source in graph.nodes.items():
        shape = shapes.get(source.name, ())
        if len(shape) == 4 and shape[0] == BATCH and graph.layouts[source] in (FIRST, LAST):
            h, w, c = shape[1:] if graph.layouts[source] == LAST else (shape[2], shape[3], shape[1])
            found.append(LayerInfo(name, tuple(names.get(name, ())), "conv", (h, w, c)))
        elif len(shape) == 2 and shape[0] == BATCH:
            found.append(LayerInfo(name, tuple(names.get(name, ())), "dense", (shape[1],)))
    return found


def build(model: str, size: int = 224) -> nn.Module:
    """Construct a model with its parameters on the meta device, as its published weights want it. Raises ValueError."""
    known = list_models()
    if model not in known:
        near = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
        raise ValueError(f"torchvision has no classification model {model!r}: {hint}")
    try:
        with _ParametersOnMeta():
            module: nn.Module = models.get_model(model, weights=None, **_options(model, size, initialise=False))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{model} cannot be built for {size} x {size} pixels: {error}") from error
    return module.eval()


def random_state(model: str, seed: int, size: int = 224) -> dict[str, Tensor]:
    """Weights as torchvision initialises them after torch.manual_seed(seed); the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = models.get_model(model, weights=None, **_options(model, size, initialise=True))
    return cast(dict[str, Tensor], module.state_dict())


def _options(model: str, size: int, initialise: bool) -> dict[str, Any]:
    """What the constructors of some models must be told."""
    if model.startswith("vit_"):
        return {"image_size": size}
    if model == "maxvit_t":
        return {"input_size": (size, size)}
    if model in ("inception_v3", "googlenet"):
        return {"init_weights": initialise, "transform_input": True}
    return {}


class _ParametersOnMeta(TorchFunctionMode):
    """Make what torch.empty allocates, which is every large parameter, on the meta device.

    Not torch.device("meta"): RegNet's constructor computes its widths with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Graph:
    """A traced model: its graph, its nodes by torchvision's names, and where their channels are."""

    def __init__(self, module: nn.Module) -> None:
        # Modules of torchvision.ops are traced into, so the layers inside them can be asked for as well.
        tracer = NodePathTracer(
            autowrap_modules=(math, torchvision.ops), leaf_modules=[torchvision.ops.StochasticDepth]
        )
        # What tracing computes from buffers becomes a constant: the buffers must not be on the meta device.
        self.graph: fx.Graph = tracer.trace(module)
        self.nodes: dict[str, fx.Node] = {name: node for node, name in tracer.node_to_qualname.items()}
        self.root = module
        self.modules = dict(module.named_modules())
        self.layouts: dict[fx.Node, str | None] = {}
        for node in self.graph.nodes:
            self.layouts[node] = self._layout(node)

    def resolve(self, name: str, model: str) -> str:
        """The node that a name means."""
        if name in self.nodes:
            return name
        aliases = self.aliases(model)
        if name in aliases:
            return aliases[name]
        inside = [node for node in self.nodes if node.startswith(f"{name}.")]
        if inside:
            return inside[-1]
        near = difflib.get_close_matches(name, [*aliases, *self.nodes], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"`fastclust layers {model}` lists them"
        if name.isdecimal():
            hint = f"it has {len(self._weight_layers())} weight layers"
        raise ValueError(f"{model} has no layer {name!r}: {hint}")

    def aliases(self, model: str) -> dict[str, str]:
        """Other names of nodes: the field's for VGG, and the number of each weight layer."""
        name_of = {node: name for name, node in self.nodes.items()}
        names = _vgg_names(self.modules) if model.startswith("vgg") else {}
        for number, node in enumerate(self._weight_layers(), 1):
            names[str(number)] = name_of[self._activated(node)]
        return names

    def prune(self, wanted: dict[str, str]) -> fx.Graph:
        """Keep what the wanted nodes need, and hand their values to the second input; the output is a dict by layer."""
        last = max(list(self.graph.nodes).index(self.nodes[name]) for name in wanted.values())
        for node in reversed(list(self.graph.nodes)[last + 1 :]):
            self.graph.erase_node(node)
        images = next(node for node in self.graph.nodes if node.op == "placeholder")
        with self.graph.inserting_after(images):
            keep = self.graph.placeholder("keep")
        kept = {}
        for layer, name in wanted.items():
            node = self.nodes[name]
            with self.graph.inserting_after(keep if node is images else node):
                kept[layer] = self.graph.call_function(_hand_on, (keep, layer, node, self.layouts[node] == LAST))
        self.graph.output(kept)
        self.graph.owning_module = fx.GraphModule(self.root, self.graph)
        self.graph.eliminate_dead_code()
        return self.graph

    def _weight_layers(self) -> list[fx.Node]:
        return [node for node in self.nodes.values() if isinstance(self._module(node), nn.Conv2d | nn.Linear)]

    def _activated(self, node: fx.Node) -> fx.Node:
        after = self._only_user(node)
        if after and isinstance(self._module(after), nn.modules.batchnorm._BatchNorm):
            after = self._only_user(after)
        return after if after and self._is_activation(after) else node

    def _is_activation(self, node: fx.Node) -> bool:
        module = self._module(node)
        name = type(module).__name__ if module else getattr(node.target, "__name__", str(node.target))
        return name.lower() in ACTIVATIONS

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].op != "output" else None

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _layout(self, node: fx.Node) -> str | None:
        """Where the channels of a node's 4-D values are: known by the node's kind, or as in its first input."""
        module = self._module(node)
        if node.op == "placeholder" or type(module).__name__.endswith(("Conv2d", "BatchNorm2d", "Pool2d")):
            return FIRST
        if isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:
            return LAST
        before = next((self.layouts[source] for source in node.all_input_nodes if self.layouts.get(source)), None)
        name = getattr(node.target, "__name__", str(node.target))
        if name == "permute":
            dims: Any = node.args[1] if isinstance(node.args[1], Sequence) else node.args[1:]
            flips = {(FIRST, (0, 2, 3, 1)): LAST, (LAST, (0, 3, 1, 2)): FIRST}
            return flips.get((before or "", tuple(dims)), UNKNOWN)
        return UNKNOWN if name == "swapaxes" else before


class _ShapePass(fx.Interpreter):
    """Run a graph on the meta device and keep each tensor's shape."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        self.found: dict[str, tuple[int, ...]] = {}
        with torch.inference_mode():
            self.run(torch.empty(BATCH, 3, 224, 224, device="meta"))
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            self.found[n.name] = tuple(value.shape)
        return value


def _hand_on(keep: Callable[[str, Tensor], Tensor], layer: str, value: Tensor, channels_last: bool) -> Tensor:
    """Hand on a layer's values with the channels last: (n, c, h, w) as a view (n, h, w, c)."""
    return keep(layer, value if value.ndim != 4 or channels_last else value.permute(0, 2, 3, 1))


def _copy(layer: str, value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


def _as_it_is(layer: str, value: Tensor) -> Tensor:
    return value


def _vgg_names(modules: dict[str, nn.Module]) -> dict[str, str]:
    names, block, number = {}, 1, 0
    for name, module in modules.items():
        if not name.startswith("features."):
            continue
        if isinstance(module, nn.MaxPool2d):
            names[f"pool{block}"] = name
            block, number = block + 1, 0
        else:
            number += isinstance(module, nn.Conv2d)
            kind = {"Conv2d": "conv", "BatchNorm2d": "bn", "ReLU": "relu"}[type(module).__name__]
            names[f"{kind}{block}_{number}"] = name
    dense = {"fc6": 0, "relu6": 1, "fc7": 3, "relu7": 4, "fc8": 6}
    return names | {name: f"classifier.{index}" for name, index in dense.items()}
