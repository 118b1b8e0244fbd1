"""Weights of torchvision models: from a file, from torchvision's own, or random; checked before they are used.

A file may hold less than the model, as long as it holds every parameter that the pruned network needs; shapes and
values of the others are not looked at, so a classifier for other classes does no harm.
"""

import hashlib
import re
import urllib.error
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models

NAMED = 3  # at most so many tensors are named in an error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or anything torch.load reads with weights_only=True. CPU tensors, by name.

    A dict under "state_dict" or "model" is taken out, a "module." before every name is taken off. Zip-format files are
    mapped, so what is not used is not read. Raises FileNotFoundError, ValueError where it is not a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: expected weights, a .pth, .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file raises whatever its bytes lead to: pickle, zip, key, index errors
        first = str(error).strip().split("\n")[0][:160]
        raise ValueError(f"{path} is not a file of plain weights ({type(error).__name__}: {first})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a state dict: expected tensors by name, as model.state_dict() gives them")
    if all(name.startswith("module.") for name in state):
        versions = {f"{name}.".removeprefix("module.").rstrip("."): value for name, value in _versions(state).items()}
        state = _with_versions({name.removeprefix("module."): value for name, value in state.items()}, versions)
    return cast(dict[str, Tensor], state)


def pretrained_file(model: str) -> tuple[Path, str]:
    """Find torchvision's default weights of a model in its cache, downloading them first where they are not there.

    Returns the file and the weights' name. Raises ConnectionError where they can be had neither way, ValueError where
    the cached file does not have the hash in its name.
    """
    entry = models.get_model_weights(model).DEFAULT
    name, url = str(entry), entry.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), _hash_in(path), progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise ConnectionError(
                f"the pretrained weights of {model} are not in {path.parent} and cannot be downloaded from {url} "
                f"({error}): give a file with --weights PATH, or take --weights random"
            ) from error
    if not file_sha256(path).startswith(_hash_in(path)):
        raise ValueError(
            f"{path} is not what was published (its SHA-256 does not start with {_hash_in(path)}): delete it"
        )
    return path, name


def file_sha256(path: str | Path) -> str:
    """Hash a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, state: dict[str, Tensor], needed: Sequence[str], source: str, model: str) -> None:
    """Put a state dict into a model (on the meta device, its own initial values are never made), as float32.

    `needed` are the names of what the network uses: each must be there, of the right shape and finite, or ValueError
    names it. Running counts of batches may be missing; nothing uses them.
    """
    own = module.state_dict()
    versions = _versions(state) or _versions(own)
    state = {_modern(name): value for name, value in state.items()}
    fits = {name: value for name, value in state.items() if name not in own or own[name].shape == value.shape}
    for name in needed:
        if name in state and name not in fits:
            raise ValueError(
                f"{source} holds the weights of another model: {name} is {tuple(state[name].shape)}, "
                f"{model} needs {tuple(own[name].shape)}"
            )
    if not fits.keys() & own.keys():
        raise ValueError(
            f"{source} holds the weights of another model: it has {', '.join(list(state)[:NAMED])} ..., "
            f"{model} needs {', '.join(needed[:NAMED])} ..."
        )
    absent = set(module.load_state_dict(_with_versions(fits, versions), strict=False, assign=True).missing_keys)
    used = [name for name in needed if not name.endswith("num_batches_tracked")]
    missing = [name for name in used if name in absent]
    if missing:
        some = ", ".join(missing[:NAMED]) + (" ..." if len(missing) > NAMED else "")
        raise ValueError(f"{source} misses {len(missing)} of the {len(used)} tensors that these layers need: {some}")
    loaded = dict(module.state_dict(keep_vars=True))
    for name in needed:
        value = loaded[name]
        if value.is_meta:
            value = torch.zeros(value.shape, dtype=value.dtype)
        elif value.is_floating_point():
            value = value.detach().to(torch.float32, copy=True)
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{source}: {name} holds NaN or infinite values: these weights cannot be used")
        _assign(module, name, value)


def missing(state: dict[str, Tensor], needed: Sequence[str]) -> list[str]:
    """Return those of the names `needed` that a state dict lacks; running counts of batches are not asked for."""
    names = {_modern(name) for name in state}
    return [name for name in needed if name not in names and not name.endswith("num_batches_tracked")]


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    part = module.get_submodule(owner)
    if leaf in part._parameters:
        setattr(part, leaf, nn.Parameter(value, requires_grad=False))
    else:
        setattr(part, leaf, value)


def _versions(state: Any) -> dict[str, Any]:
    """The format version of each module, which state_dict() attaches and some models' loading asks for."""
    return getattr(state, "_metadata", None) or {}


def _with_versions(state: dict[str, Tensor], versions: dict[str, Any]) -> OrderedDict[str, Tensor]:
    ordered: Any = OrderedDict(state)
    ordered._metadata = versions
    return cast(OrderedDict[str, Tensor], ordered)


def _hash_in(path: Path) -> str:
    """The start of the SHA-256 that torchvision writes into its files' names: resnet18-f37072fd.pth."""
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return found[1] if found else ""


def _modern(name: str) -> str:
    """DenseNet's published weights have a dot before the number in these names; torchvision renames them too."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name)
