"""Model folders from other houses' checkpoints, and the way back.

The one decision: what is asked for is compared with what is there before anything is written; then tensors go one by
one from file to file. So a model larger than the memory is converted, and what is refused leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from shards.progress import Progress
from trainer import layouts
from trainer.data.images import MEAN, STD
from trainer.errors import ModelError
from trainer.model.adapter import Adapter, Projection
from trainer.model.config import ModelConfig, VisionConfig, checked
from trainer.model.folder import LANGUAGE, load_config, must_be_new, named_tensors, stored, write_model, writing
from trainer.model.vision import check_openclip
from trainer.model.vlm import build_model
from trainer.tokenizer import QWEN_FILE, Tokenizer, from_tiktoken, load_tokenizer
from trainer.weights import Checkpoint, Shape, Shards, find_files, read_json, write_json

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}  # anything else keeps each tensor's own
# Keys of a language model's config.json that tell of its file, not of the model.
_ASIDE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map")


def import_released(source: Path, out: Path, dtype: str = "keep") -> None:
    """A folder in the released layout of Qwen-VL becomes a model folder. Raises `TrainerError`."""
    must_be_new(out)
    values, where = read_json(source / "config.json"), str(source / "config.json")
    if values.get("model_type") != "qwen":
        raise ModelError(f"{where}: model_type is {values.get('model_type')!r}: a released Qwen-VL has 'qwen'")
    tokenizer = from_tiktoken(source / QWEN_FILE)
    checkpoint = Checkpoint(source, ("", find_files(source, "model", "pytorch_model")))
    config = layouts.from_released_config(values, checkpoint.shapes, tokenizer.special, where)
    wanted = _wanted(config)
    takes = layouts.from_released(wanted, config.vision.heads)
    checkpoint.check(takes, layouts.IGNORED)
    write_model(out, config, _cast(checkpoint.stream(takes), dtype, "import", len(takes)), tokenizer)


def assemble(
    vision: str,
    language: Path,
    out: Path,
    *,
    vision_config: str | None = None,
    vision_eps: float | None = None,
    image_size: int | None = None,
    queries: int = 256,
    adapter_heads: int | None = None,
    seed: int = 0,
    dtype: str = "keep",
) -> None:
    """Tower, language model and a fresh adapter become a model folder; the same seed gives the same bytes.

    vision: a folder, weights file or tag (`_vision`). vision_eps, image_size: None for the tower's own. adapter_heads:
    None for heads 128 wide, as Qwen-VL's. Raises `TrainerError`.
    """
    must_be_new(out)
    tower, seen = _vision(vision, vision_config)
    values, tokenizer, read, qwen = _language(language)
    width, rows = values.get("hidden_size"), values.get("vocab_size")
    if not isinstance(width, int) or not isinstance(rows, int):
        raise ModelError(f"{language / 'config.json'}: hidden_size or vocab_size is missing")
    size = tower.image_size if image_size is None else image_size
    heads = max(1, width // 128) if adapter_heads is None else adapter_heads
    made = {"name": f"{Path(vision).name}+{language.name}", "image_size": size}
    made |= {"image_token": tokenizer.special["imgpad"], "adapter": {"queries": queries, "heads": heads}}
    made["vision"] = tower.model_dump() | ({} if vision_eps is None else {"eps": vision_eps})
    made["language"] = values | {"vocab_size": max(rows, tokenizer.size)}
    config = checked(made, f"{vision} and {language}")
    wanted = _wanted(config)
    eyes = layouts.from_openclip({name: shape for name, shape in wanted.items() if name.startswith("vision.")})
    speech = {name: shape for name, shape in wanted.items() if name.startswith(LANGUAGE)}
    spoken = layouts.grown((layouts.from_released if qwen else layouts.from_transformers)(speech), rows, tokenizer.new)
    seen.check(eyes, layouts.OPENCLIP_IGNORED)
    read.check(spoken, layouts.IGNORED if "language.lm_head.weight" in wanted else layouts.TIED_IGNORED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = Adapter(config.adapter, config.vision.width, width)
        fresh = torch.nn.ModuleDict({"adapter": adapter, "projection": Projection(width, config.adapter.eps)})
    tensors = chain(seen.stream(eyes), fresh.state_dict().items(), read.stream(spoken))
    write_model(out, config, _cast(tensors, dtype, "assemble", len(wanted)), tokenizer)


def export(source: Path, out: Path, dtype: str = "keep") -> None:
    """A model folder becomes one in the released layout of Qwen-VL. Raises `TrainerError`."""
    must_be_new(out)
    config = load_config(source)
    values = layouts.to_released_config(config)
    tokenizer = from_tiktoken(source / LANGUAGE / QWEN_FILE)
    checkpoint, takes = stored(source), layouts.to_released(_wanted(config), config.vision.heads)
    checkpoint.check(takes)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        shards = Shards(out, "model")
        for name, tensor in _cast(checkpoint.stream(takes), dtype, "export", len(takes)):
            shards.add(name, tensor)
        values["torch_dtype"] = shards.close()
        tokenizer.save(out)
        write_json(out / "config.json", values)


def _vision(vision: str, named: str | None) -> tuple[VisionConfig, Checkpoint]:
    """The tower's configuration and weights: of a folder of open_clip's, a weights file, or a tag `MODEL:TAG`."""
    path, (model, _, tag) = Path(vision), vision.partition(":")
    values: dict[str, Any] | None
    if path.is_dir():
        values = read_json(path / "open_clip_config.json")
        _same_pixels(values.get("preprocess_cfg"), vision)
        files = find_files(path, "open_clip_model", "open_clip_pytorch_model")
    elif path.is_file():
        if named is None:
            raise ModelError(f"{vision}: --vision-config is needed: open_clip's name of the model, or its JSON file")
        values = read_json(Path(named)) if named.endswith(".json") else open_clip.get_model_config(named)
        model, files = named, [path]
    elif tag in open_clip.list_pretrained_tags_by_model(model):
        pretrained = open_clip.get_pretrained_cfg(model, tag)
        _same_pixels(pretrained, vision)
        values = open_clip.get_model_config(model)
        values |= {"quick_gelu": bool(pretrained.get("quick_gelu") or values.get("quick_gelu"))}
        try:
            files = [Path(open_clip.download_pretrained(pretrained))]
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{vision}: cannot be downloaded: {error}") from error
    else:
        raise ModelError(f"{vision}: neither a folder, nor a weights file, nor a MODEL:TAG that open_clip knows")
    if values is None:
        raise ModelError(f"{model}: open_clip has no model of this name; give its configuration as a .json file")
    return check_openclip(values.get("model_cfg", values)), Checkpoint(vision, ("", files))


def _same_pixels(given: object, where: str) -> None:
    """Raises `ModelError` for weights that learnt from images normalised in another way than ours are."""
    for key, ours in (("mean", MEAN), ("std", STD)):
        value = given.get(key, ours) if isinstance(given, dict) else ours
        if tuple(value) != ours:
            raise ModelError(f"{where}: its images have {key} {value}, not CLIP's: only that is taken")


def _language(folder: Path) -> tuple[dict[str, Any], Tokenizer, Checkpoint, bool]:
    """Configuration, tokenizer and weights of a language model, and whether it is a Qwen-7B in its own layout."""
    values, where = read_json(folder / "config.json"), str(folder / "config.json")
    if "visual" in values or "vision_config" in values:
        raise ModelError(f"{where}: this model has a tower of its own; a released Qwen-VL goes in by `import`")
    qwen = values.get("model_type") == "qwen"
    tokenizer = from_tiktoken(folder / QWEN_FILE) if qwen else load_tokenizer(folder, add_structure=True)
    if qwen:
        values = layouts.qwen_language(values, tokenizer.special["eos"], where)
    values = {key: value for key, value in values.items() if key not in _ASIDE}
    return values, tokenizer, Checkpoint(folder, ("", find_files(folder, "model", "pytorch_model"))), qwen


def _wanted(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a model folder, in the order of a model's state."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(build_model(config, "meta")).items()}


def _cast(tensors: Iterable[tuple[str, Tensor]], dtype: str, what: str, count: int) -> Iterator[tuple[str, Tensor]]:
    """As they are asked for; the adapter's table of positions stays as it is stored: no weight. Shows progress."""
    with Progress(what) as progress:
        for done, (name, tensor) in enumerate(tensors, 1):
            yield name, tensor if name.endswith(".pos_embed") else tensor.to(_DTYPES.get(dtype, tensor.dtype))
            progress.told(done, count)
