"""Finds, identifies and loads a CLIP model through open_clip: by name and tag, or from files.

The decision behind this module: what can be wrong is found as early as it can be. `check` and `identity` need no
torch, so a missing file or a misspelt model shows in a second and not after a cluster has started; nothing but tensors
is ever read from a weights file (no pickled code), and a model without its weights is an error, never a random one.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filters.base import RuleError
from filters.clip_text import read_short_texts
from filters.square import Square

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

HUB, FOLDER = "hf-hub:", "local-dir:"
SCHEMES = (HUB, FOLDER)

_INSTALL = "the CLIP filter needs torch and open_clip: pip install 'winnow-vl[clip]'"
_WEIGHTS = {".bin", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".safetensors"}
_CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to score, on its device."""

    model: Any  # open_clip's CLIP, CustomTextCLIP or CoCa, in eval mode
    preprocess: Callable[[Image], torch.Tensor]  # RGB picture -> (3, height, width) float32
    tokenizer: Any  # texts -> (texts, context_length) int64
    side: int  # the longer side, in pixels, of what the model sees
    lengths: tuple[int, ...]  # in tokens, ascending, at which a caption may be read; the last is the context


def check(model: str, pretrained: str) -> None:
    """Raises `RuleError` if libraries or files are missing or the model's name is unknown; imports no torch."""
    package = importlib.util.find_spec("open_clip")
    if package is None or importlib.util.find_spec("torch") is None:
        raise RuleError(_INSTALL)
    if model.startswith(FOLDER):
        folder = Path(model.removeprefix(FOLDER))
        if not (folder / "open_clip_config.json").is_file():
            raise RuleError(f"CLIP model {model!r}: the folder {str(folder)!r} has no open_clip_config.json")
    elif _is_config(model):
        _check_tokenizer(model, _read_config(Path(model)))
        if not _is_file(pretrained):
            raise RuleError(f"CLIP model {model!r} is a config file: `pretrained` must be a weights file of it")
    elif not model.startswith(HUB):
        own = _own_configs()
        known = sorted(path.stem for path in own.glob("*.json"))
        if _stem(model) not in known:
            raise RuleError(f"open_clip has no model {model!r}{_nearest(_stem(model), known)}")
        _check_tokenizer(model, json.loads((own / f"{_stem(model)}.json").read_text(encoding="utf-8")))
    if not model.startswith(SCHEMES) and _is_file(pretrained) and not Path(pretrained).is_file():
        raise RuleError(f"CLIP weights {pretrained!r}: there is no such file")


def identity(model: str, pretrained: str) -> dict[str, str]:
    """What decides the scores of a model: hashes of its files, else its names and the version of open_clip."""
    check(model, pretrained)
    try:
        library = version("open_clip_torch")
    except PackageNotFoundError as error:
        raise RuleError(_INSTALL) from error
    if model.startswith(HUB):
        return {"model": model, "open_clip": library}
    if model.startswith(FOLDER):
        files = sorted(path for path in Path(model.removeprefix(FOLDER)).iterdir() if path.is_file())
        content = "".join(f"{path.name} {_sha256(path)}\n" for path in files)
        return {"model": f"{FOLDER}sha256:{hashlib.sha256(content.encode()).hexdigest()}"}
    named = {"model": f"sha256:{_sha256(Path(model))}"} if _is_config(model) else {"model": _stem(model)}
    if _is_file(pretrained):
        return {**named, "pretrained": f"sha256:{_sha256(Path(pretrained))}"}
    return {**named, "pretrained": pretrained, "open_clip": library}


def load(model: str, pretrained: str, device: str = "cpu") -> LoadedModel:
    """Loads model, preprocessing and tokenizer; every failure is a `RuleError` of one line."""
    check(model, pretrained)
    try:
        import open_clip
        import torch
    except ImportError as error:
        raise RuleError(f"{_INSTALL} ({error})") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuleError(f"CLIP on {device!r}: torch {torch.__version__} sees no GPU here")
    name = model if model.startswith(SCHEMES) else _stem(model)
    if _is_config(model):
        open_clip.add_model_config(Path(model))
    elif not model.startswith(SCHEMES) and not _is_file(pretrained):
        _check_tag(open_clip, name, pretrained)
    source = model if model.startswith(SCHEMES) else f"{model} ({pretrained})"
    try:
        network, preprocess = open_clip.create_model_from_pretrained(
            name,
            pretrained=None if model.startswith(SCHEMES) else pretrained,
            device=device,
            weights_only=True,
            force_custom_text=True,  # the same weights in a text tower of its own, which reads shorter texts too
        )
    except Exception as error:
        local = _is_file(pretrained) or model.startswith(FOLDER)
        hint = "are these its weights?" if local else "where there is no network, give the path of its weights"
        raise RuleError(f"CLIP model {source} cannot be loaded; {hint} ({_one_line(error)})") from error
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise RuleError(f"the tokenizer of CLIP model {source} cannot be loaded: {_one_line(error)}") from error
    network.eval().requires_grad_(False)
    config = network.visual.preprocess_cfg
    size = config["size"]
    side = max(size) if isinstance(size, (tuple, list)) else int(size)
    return LoadedModel(network, Square.of(config) or preprocess, tokenizer, side, read_short_texts(network, tokenizer))


def _check_tag(open_clip: Any, name: str, tag: str) -> None:
    """The tag exists for the model, and was trained with the activation that the model's config has."""
    trained = open_clip.get_pretrained_cfg(name, tag)
    if not trained:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise RuleError(f"open_clip has no weights {tag!r} for model {name!r}{_nearest(tag, tags)}")
    if trained.get("quick_gelu", False) != open_clip.get_model_config(name).get("quick_gelu", False):
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        raise RuleError(f"the weights {tag!r} were trained with another activation than {name!r} has: use {other!r}")


def _check_tokenizer(model: str, config: dict[str, Any]) -> None:
    """Models with a text tower or a tokenizer of Hugging Face (all multilingual ones, SigLIP) need one library more."""
    if {"hf_tokenizer_name", "hf_model_name"} & set(config["text_cfg"]) and not importlib.util.find_spec(
        "transformers"
    ):
        raise RuleError(f"CLIP model {model!r} needs transformers for its captions: pip install transformers")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RuleError(f"CLIP model config {str(path)!r}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise RuleError(f"CLIP model config {str(path)!r} cannot be read: {_one_line(error)}") from error
    if not isinstance(config, dict) or not all(key in config for key in _CONFIG_KEYS):
        raise RuleError(f"CLIP model config {str(path)!r} needs the keys {', '.join(_CONFIG_KEYS)}")
    if not (isinstance(config["vision_cfg"], dict) and isinstance(config["text_cfg"], dict)):
        raise RuleError(f"CLIP model config {str(path)!r}: vision_cfg and text_cfg are mappings")
    if (_own_configs() / path.name).exists():  # open_clip finds configs by their stem, for the rest of the process
        raise RuleError(f"CLIP model config {str(path)!r} has the name of a model of open_clip: rename the file")
    return config


def _own_configs() -> Path:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise RuleError(_INSTALL)
    return Path(package.origin).parent / "model_configs"


def _stem(model: str) -> str:
    """The name under which open_clip knows a config file or a model (`ViT-B/32` is `ViT-B-32`)."""
    return Path(model).stem if _is_config(model) else model.replace("/", "-")


def _is_config(model: str) -> bool:
    return model.endswith(".json") and not model.startswith(SCHEMES)


def _is_file(pretrained: str) -> bool:
    """A path rather than a tag; tags have neither slashes nor such endings."""
    return "/" in pretrained or "\\" in pretrained or Path(pretrained).suffix in _WEIGHTS


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: str, mtime_ns: int, size: int) -> str:
    """Cached by all that changes with a file: weights of gigabytes are hashed once a process."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
