"""The table of docs/reproduce.md, from configs/: ``python docs/runs.py``."""

import re
from pathlib import Path

from qkformer.training.command_line import parse_train
from qkformer.training.config import Config

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
PAGE = HERE / "reproduce.md"
BEGIN, END = "<!-- made by python docs/runs.py -->\n", "<!-- end -->"
DATA = {  # name -> heading, GPUs, command
    "imagenet": ("ImageNet-1k", 8, "torchrun --nproc_per_node=8 imagenet/train.py"),
    "cifar10": ("CIFAR10", 1, "python cifar10/train.py"),
    "cifar100": ("CIFAR100", 1, "python cifar100/train.py"),
    "dvs128-gesture": ("DVS128 Gesture", 1, "python dvs128-gesture/train.py"),
    "cifar10-dvs": ("CIFAR10-DVS", 1, "python cifar10-dvs/train.py"),
}
FAMILIES = ("qkformer", "ms_qkformer", "maxformer", "spikformer")


def files() -> list[Path]:
    """The runs of QKFormer, its successors and Spikformer; those of others are in models.md."""
    found = []
    for data in DATA:
        for family in FAMILIES:
            name = re.compile(rf"{data.replace('-', '_')}_{family}(_10_.*|_released)?")
            found += sorted(file for file in CONFIGS.glob("*.yml") if name.fullmatch(file.stem))
    return found


def table() -> str:
    """A table for each data set, and what is known of their runs."""
    runs = [(file, parse_train(file, [])[0], remarks(file)) for file in files()]
    known = list(dict.fromkeys(remark for _, _, found in runs for remark in found))
    lines = []
    for name, (heading, gpus, command) in DATA.items():
        lines += [f"### {heading}\n", f"`{command} --config configs/NAME.yml`\n"]
        lines += ["| NAME | T | px | epochs | samples per step | published, % | notes |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for file, config, found in runs:
            if config.data.name == name:
                notes = ", ".join(
                    str(i) for i, remark in enumerate(known, start=1) if remark in found
                )
                lines.append(f"| {_row(file, config, gpus)} | {notes} |")
        lines.append("")
    lines += ["Notes:\n", *(f"{i}. {remark}" for i, remark in enumerate(known, start=1)), ""]
    return "\n".join(lines)


def remarks(file: Path) -> list[str]:
    """What the comment at the top of a file says beyond the model, its accuracy and the command."""
    lines = file.read_text().split("\n\n")[0].splitlines()
    text = " ".join(line.removeprefix("# ") for line in lines if not line.startswith("#  "))
    text = re.sub(r"^.*? parameters\. (Published: [\d.]+ %|Accuracy: not known to us)", "", text)
    its_log = re.match(r" \(its log: ([\d.]+)\)", text)
    text = text[its_log.end() if its_log else 0 :].removeprefix(".").strip()
    return [sentence for sentence in re.split(r"(?<=\.) (?=[A-Za-z])", text) if sentence]


def _row(file: Path, config: Config, gpus: int) -> str:
    head = file.read_text()
    published = re.search(r"Published: ([\d.]+) %(?: \(its log: ([\d.]+)\))?", head)
    accuracy = "not known to us"
    if published:
        accuracy = published[1] + (f" (log: {published[2]})" if published[2] else "")
    cooldown = config.schedule.cooldown_epochs
    epochs = f"{config.epochs} + {cooldown}" if cooldown else str(config.epochs)
    factors = (config.data.batch_size, gpus, config.optimizer.accumulation_steps)
    batch = " x ".join(str(factor) for factor in factors if factor > 1)
    values = (config.model.T, config.data.image_size, epochs, batch, accuracy)
    return f"[{file.stem}](../configs/{file.name}) | " + " | ".join(map(str, values))


def page() -> str:
    """The page, with the table as it should be."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page())
