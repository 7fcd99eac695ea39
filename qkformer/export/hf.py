"""A model's folder for the Hugging Face hub, as timm reads it: config.json, weights, model card."""

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from qkformer.analysis.source import told
from qkformer.checkpoint.io import HUB_CONFIG, HUB_RECORD, HUB_WEIGHTS
from qkformer.commands import Parser
from qkformer.data.image_transforms import crop_share
from qkformer.data.inputs import descriptions
from qkformer.export.card import model_card, public
from qkformer.files import publish, write_text
from qkformer.models import SpikingNetwork
from qkformer.text import one_line
from qkformer.training.config import ConfigError
from qkformer.training.environment import make_folder
from qkformer.training.evaluate import check_tested
from qkformer.training.trained import Trained, load_trained

EPILOG = "All other options are test.py's: --config FILE --ssa MODE --weights ema --KEY VALUE"
GIVEN = ("num_classes", "in_chans", "global_pool", "img_size")  # by the model as it is


def export_hf(
    model: SpikingNetwork,
    folder: str | os.PathLike,
    *,
    card: str = "",
    pretrained_cfg: Mapping[str, Any] | None = None,
    **entries: Any,
) -> None:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` builds, and,
    from the hub, ``timm.create_model("hf-hub:USER/NAME", pretrained=True)``.

    It is built once before it is written, and compared.

    Args:
        model: one of this package's models, made by ``create_model`` with arguments that JSON has.
        folder: made if it is not there; its files of these names are replaced.
        card: README.md; none is written without.
        pretrained_cfg: of config.json, over the model's own: what timm knows of its input.
        entries: of config.json, such as ``label_names``.

    Raises:
        TypeError: no such model.
        ValueError: what would be read is not this model, as of one that is folded or has a class
            of its own for a neuron.
        FileError: a file cannot be written.
    """
    if not isinstance(model, SpikingNetwork):
        raise TypeError(f"expected a model of qkformer, got {type(model).__name__}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)
    arguments = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in GIVEN}
    # those that timm would leave out as they act in training; where another machine computes is its
    # own business
    arguments |= {"T": model.T} | ({"backend": "auto"} if "backend" in arguments else {})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as new:
        facts = {"pretrained_cfg": dict(pretrained_cfg or {}), **entries}
        save_for_hf(written, new, facts, arguments, safe_serialization=True)
        _check(written, new)
        for name in (HUB_WEIGHTS, HUB_CONFIG):
            publish(Path(new, name), folder / name)
    if card:
        write_text(folder / "README.md", card)


def _check(model: SpikingNetwork, folder: str) -> None:
    try:
        read = timm.create_model(f"local-dir:{folder}", pretrained=True)
        reason = "its arguments build another"
    except (RuntimeError, TypeError, ValueError) as error:
        read, reason = None, one_line(error)
    if read is None or (str(read), read.T, read.ssa) != (str(model), model.T, model.ssa):
        raise ValueError(
            "this model could not be built again: export it as create_model made it, before "
            f"fuse_for_inference or other changes ({reason})"
        )


# --------------------------------------------------------------------------------- the command


def hf(argv: Sequence[str]) -> None:
    """A folder for the Hugging Face hub and timm: config.json, model.safetensors, model card."""
    made = Parser(
        "python -m qkformer.export hf", description=hf.__doc__, allow_abbrev=False, epilog=EPILOG
    )
    made.add_argument("--output", type=Path, required=True, help="folder to write")
    made.add_argument("--push", metavar="USER/NAME", help="repository of the hub to send it to")
    options, rest = made.parse_known_args(argv)
    api = _hub() if options.push else None
    config, tested = told(rest)
    if tested.quantize:
        raise ConfigError("--quantize: the hub gets the weights as they were trained; leave it out")
    print(tested.source, *check_tested([config], tested), sep="\n")
    trained = load_trained(config, tested.checkpoint, use_ema=tested.weights == "ema")
    if not isinstance(trained.model, SpikingNetwork):
        raise ConfigError(f"hf: {config.model.name} is timm's own, whose save_for_hf writes it")
    make_folder(options.output)
    try:
        export_hf(
            trained.model,
            options.output,
            card=model_card(trained, tested, options.push),
            pretrained_cfg=pretrained_cfg(trained),
            **entries(trained),
        )
    except ValueError as error:
        raise ConfigError(f"hf: {error}") from error
    print(f"{options.output}: {HUB_CONFIG}, {HUB_WEIGHTS}, README.md")
    if api:
        print(_push(api, options.push, options.output))


def pretrained_cfg(trained: Trained) -> dict[str, Any]:
    """What timm's transforms have to know to do what this package's do."""
    config, inputs = trained.config.data, trained.inputs
    facts = {"input_size": (inputs.in_chans, config.image_size, config.image_size)}
    if inputs.stored:
        return facts
    return facts | {
        "mean": inputs.mean,
        "std": inputs.std,
        "crop_pct": crop_share(config),
        "crop_mode": "center",
        "interpolation": "bicubic",
    }


def entries(trained: Trained) -> dict[str, Any]:
    """The rest of config.json: the names of the classes as timm reads them, and our record."""
    names, report = trained.inputs.class_names, trained.report
    described = descriptions(names)
    return {
        "label_names": list(names),
        **({"label_descriptions": described} if described else {}),
        HUB_RECORD: {
            "config": asdict(public(trained.config)),
            "inputs": asdict(trained.inputs),
            "epoch": report.epoch,
            "acc1": report.accuracy,
            "md5": report.md5,
        },
    }


def _hub() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError("--push: pip install huggingface_hub") from error
    return HfApi()


def _push(api: Any, name: str, folder: Path) -> str:
    try:
        repository = api.create_repo(name, exist_ok=True).repo_id
        sent = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[HUB_CONFIG, HUB_WEIGHTS, "README.md"],
            commit_message="qkformer.export hf",
        )
    except (OSError, ValueError) as error:  # of which the hub's own errors are
        raise ConfigError(
            f"--push {name}: {one_line(error)} (hf auth login gives this machine access)"
        ) from error
    return f"{sent}: timm.create_model('hf-hub:{repository}', pretrained=True)"
