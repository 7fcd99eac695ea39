"""Command lines and YAML files: what is asked for acts, what makes no sense stops at once."""

import re
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import torch
import yaml

from qkformer.data import registry
from qkformer.neurons.cuda import loader
from qkformer.training import command_line, main
from qkformer.training.command_line import (
    TESTED_SECTIONS,
    TRAINING_ONLY,
    parse_test,
    parse_train,
)
from qkformer.training.config import (
    FREE_ON_RESUME,
    KEYS,
    ComputeConfig,
    ConfigError,
    changed_keys,
)
from qkformer.training.config_file import to_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEMO = CONFIGS / "demo_digits.yml"
TEST = ["--config", str(DEMO), "--checkpoint", "x/best.pth"]
ACT_IN_TESTING = [key for key in KEYS if key.startswith(TESTED_SECTIONS)]
ACT_IN_TESTING = [key for key in ACT_IN_TESTING if key not in TRAINING_ONLY]


@pytest.fixture
def write(tmp_path):
    """Write a YAML file, at whose path to find it."""

    def write(text, name="some.yml"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return str(file)

    return write


@pytest.fixture
def parse(write):
    """The configuration of the demo with a file on top of it."""
    return lambda text, *argv: parse_train(
        DEMO, ["--config", str(DEMO), "--config", write(text), *argv]
    )[0]


def value_of(config, key):
    section, _, inner = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, inner)


def nested(key, value):
    section, _, inner = key.rpartition(".")
    return f"{section}: {{{inner}: {value}}}" if section else f"{inner}: {value}"


# ---------------------------------------------------------------------------- what is asked for


def test_the_command_line_overrides_the_file_whatever_comes_first():
    config, _ = parse_train(
        Path("unused.yml"),
        ["--epochs", "3", "--optimizer.lr=0.25", "--config", str(DEMO), "--seed", "7"],
    )
    assert (config.epochs, config.optimizer.lr, config.seed) == (3, 0.25, 7)
    assert config.data.batch_size == 32


def test_configurations_that_come_along_are_found_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, options = parse_train(None, ["--config", DEMO.name])
    assert config == parse_train(DEMO, [])[0] and options.output == Path("runs/demo_digits")
    assert parse_train(None, ["--config", "cifar10_qkformer.yml"])[0].data.name == "cifar10"
    Path(DEMO.name).write_text(DEMO.read_text().replace("epochs: 20", "epochs: 21"))
    assert parse_train(None, ["--config", DEMO.name])[0].epochs == 21  # of the user's own


@pytest.mark.parametrize(
    ("door", "required"), [(main.train, "--config"), (main.test, "--checkpoint")]
)
def test_doors_of_no_data_set_have_no_default(door, required, capsys):
    with pytest.raises(SystemExit) as stop:
        door(None, [])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"error: {required}: required")
    assert error.count("\n") == 1


def test_a_later_file_overrides_key_by_key(parse):
    config = parse("model: {T: 2, args: {depths: [1, 1, 1]}}")
    assert (config.model.T, config.model.name) == (2, "qkformer_4_384")
    assert config.model.args == {"depths": [1, 1, 1]}  # which is one key


def test_any_argument_of_the_model_is_reached():
    argv = ["--model.args.depths", "[1, 1, 1]", "--model.neuron", "null", "--model.ssa=original"]
    config, _ = parse_train(DEMO, argv)
    assert config.model.arguments() == {
        "T": 4,
        "ssa": "original",
        "mlp_ratio": 4.0,
        "drop_path_rate": 0.0,
        "backend": "auto",
        "embed_dim": 64,
        "num_heads": 4,
        "depths": [1, 1, 1],
    }
    assert parse_train(DEMO, ["--model.args", "{embed_dim: 32}"])[0].model.args == {"embed_dim": 32}
    assert parse_train(DEMO, ["--optimizer.args.eps=1"])[0].optimizer.args == {"eps": 1}
    assert parse_train(DEMO, ["--model", "{T: 2}"])[0].model.T == 2
    later = ["--model.T", "2", "--model", "{T: 3}", "--model.T", "2"]
    assert parse_train(DEMO, later)[0].model.T == 2


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "+1.0e-03", ".1e-2", "0.001"])
def test_every_spelling_of_a_number_is_one(parse, number):
    config = parse(f"optimizer: {{lr: {number}}}", f"--model.args.attn_scale={number}")
    assert config.optimizer.lr == config.model.args["attn_scale"] == 1e-3
    assert parse_train(DEMO, ["--optimizer.lr", number])[0].optimizer.lr == 1e-3


def test_whole_numbers_and_lists_pass_for_floats_and_tuples_but_text_stays_text(parse):
    config = parse("optimizer: {lr: 1, betas: [0, 0.5]}", "--data.root", "1e5", "--model.weights=x")
    assert repr(config.optimizer.lr) == "1.0"
    assert config.optimizer.betas == (0.0, 0.5)
    assert config.data.root == "1e5"
    assert parse_train(DEMO, ["--data.root", "null"])[0].data.root is None


def test_options_besides_the_configuration():
    assert parse_train(DEMO, [])[1] == command_line.TrainOptions(
        Path("runs/demo_digits"), "auto", "auto", False
    )
    argv = ["--output", "x", "--resume", "y.pth", "--dry_run", "--device", "cpu"]
    assert parse_train(DEMO, argv)[1] == command_line.TrainOptions(Path("x"), "y.pth", "cpu", True)


def test_options_of_testing():
    source = f"configuration: {DEMO}"
    _, options = parse_test(DEMO, TEST)
    assert options == command_line.TestOptions(Path("x/best.pth"), Path("x"), source=source)
    argv = [*TEST, "--output=y", "--device=cpu", "--ssa=both", "--weights=ema"]
    argv += ["--quantize", "int8", "--input_size=24", "--time_steps", "2"]
    config, options = parse_test(DEMO, argv)
    expected = command_line.TestOptions(
        Path("x/best.pth"), Path("y"), "cpu", "both", "ema", 2, 24, "int8", source
    )
    assert options == expected
    assert (config.data.image_size, config.model.T) == (24, 2)
    assert config.model.ssa == "fixed"  # what --ssa says is done by the test itself, once or twice


@pytest.mark.parametrize("option", [["--local-rank=3"], ["--local_rank=3"], ["--local_rank", "3"]])
@pytest.mark.parametrize(
    "parse", [parse_train, lambda file, argv: parse_test(file, [*TEST, *argv])]
)
def test_the_launchers_local_rank_is_let_pass_where_it_is_the_environments(
    monkeypatch, parse, option
):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parse(DEMO, option) == parse(DEMO, [])
    for other in ("2", None):
        monkeypatch.setenv("LOCAL_RANK", other) if other else monkeypatch.delenv("LOCAL_RANK")
        with pytest.raises(ConfigError, match=r"--local-rank 3: .*torchrun"):
            parse(DEMO, option)


# -------------------------------------------------------------------------------------- bases


def test_a_file_stands_on_its_base_and_that_on_its_own(parse, write):
    write("seed: 3\nmodel: {T: 3, neuron: if}", "bases/first.yml")
    write("base: first.yml\nmodel: {T: 5, args: {embed_dim: 32}}", "bases/second.yml")
    config = parse("epochs: 7\nmodel: {ssa: original}\nbase: bases/second.yml")
    assert (config.seed, config.epochs) == (3, 7)
    assert (config.model.neuron, config.model.T, config.model.ssa) == ("if", 5, "original")
    assert config.model.args == {"embed_dim": 32}
    assert config.model.name == "qkformer_4_384"  # of the file before


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("base: 3", "FOLDER/some.yml: base: expected the path of a file, got 3"),
        (
            "base: other.yml",
            "FOLDER/other.yml, the base of FOLDER/some.yml: No such file or directory",
        ),
        (
            "base: some.yml",
            "FOLDER/some.yml -> FOLDER/some.yml: no file can be its own base",
        ),
        (
            "base: bases/around.yml",
            "FOLDER/some.yml -> FOLDER/bases/around.yml -> FOLDER/bases/../some.yml: "
            "no file can be its own base",
        ),
        ("base: bases/wrong.yml", "FOLDER/bases/wrong.yml: epochs: expected int, got many"),
    ],
)
def test_a_base_that_makes_no_sense_is_one_line(parse, write, tmp_path, base, message):
    write("base: ../some.yml", "bases/around.yml")
    write("epochs: many", "bases/wrong.yml")
    with pytest.raises(ConfigError) as caught:
        parse(base)
    assert str(caught.value).replace(str(tmp_path), "FOLDER") == message


# ----------------------------------------------------------------------- to a file, and back again


def print_config(parse, file, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(file, [*argv, "--print_config"])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("file", [DEMO, *CONFIGS.glob("*_768_288.yml")], ids=lambda file: file.stem)
def test_the_resolved_configuration_reads_back_as_itself(write, capsys, file):
    argv = ["--model.mlp_ratio", "null", "--optimizer.betas=[0.8,0.9]", "--data.root=1e5"]
    config, _ = parse_train(file, argv)
    assert parse_train(Path(write(to_yaml(config))), [])[0] == config
    assert print_config(parse_train, file, argv, capsys) == to_yaml(config)
    assert yaml.safe_load(to_yaml(config)).keys() == asdict(config).keys()  # and no base


def test_what_testing_prints_it_reads_again_and_is_what_acts(write, capsys):
    printed = print_config(parse_test, DEMO, [*TEST, "--time_steps", "2"], capsys)
    content = yaml.safe_load(printed)
    assert [f"{section}.{key}" for section in content for key in content[section]] == ACT_IN_TESTING
    again, _ = parse_test(DEMO, ["--config", write(printed), *TEST[2:]])
    assert again == parse_test(DEMO, [*TEST, "--time_steps", "2"])[0]


# ------------------------------------------------------------------------------------------- help


def help_of(parse, default, argv, capsys):
    """What is said of every option and key: what stands beside it, and the explanation."""
    with pytest.raises(SystemExit) as stop:
        parse(default, [*argv, "--help"])
    assert stop.value.code in (0, None)
    found = re.findall(r"^--(\S+)(.*)\n((?: +.*\n)+)", capsys.readouterr().out, re.MULTILINE)
    return {key: (beside, text.strip()) for key, beside, text in found}


@pytest.mark.parametrize(
    ("parse", "keys", "options"),
    [
        (parse_train, list(KEYS), {"output", "resume", "device", "dry_run"}),
        (
            parse_test,
            ACT_IN_TESTING,
            {"checkpoint", "output", "device", "ssa", "weights", "quantize"}
            | {"time_steps", "input_size"},
        ),
    ],
)
def test_help_explains_every_option_and_every_key_that_acts(capsys, parse, keys, options):
    explained = help_of(parse, DEMO, [], capsys)
    assert explained.keys() == {*keys, *options, "config", "help", "print_config"}
    assert all(len(text) > len("no words") for _, text in explained.values())


def test_help_shows_the_values_that_will_apply(write, capsys):
    config, _ = parse_train(DEMO, [])
    explained = help_of(parse_train, DEMO, [], capsys)
    for key in KEYS:
        value = value_of(config, key)
        value = list(value) if isinstance(value, tuple) else value
        shown = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
        assert explained[key][0].endswith(f" = {shown}"), key
    argv = ["--config", str(DEMO), "--config", write("seed: 77"), "--model.T=9"]
    explained = help_of(parse_train, Path("nowhere.yml"), argv, capsys)
    assert explained["seed"][0] == " int = 77"
    assert explained["model.T"][0] == " int or null = 9"


def test_help_does_without_a_file_that_is_missing(capsys):
    explained = help_of(parse_train, Path("nowhere.yml"), [], capsys)
    assert explained["seed"][0] == " int = 0"
    assert explained["epochs"][0] == " int"


@pytest.mark.parametrize(
    ("text", "message"),
    [("model: [", "not valid YAML"), ("epochs: many", "epochs: expected int, got many")],
)
def test_help_with_a_file_that_is_wrong_says_so(parse, text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text, "--help")


# --------------------------------------------------------------------------- what makes no sense

# An impossible value of every key that has limits, and what is said of it.
LIMITS = [
    ("epochs", "0", "must be at least 1, got 0"),
    ("seed", "-1", "must be in 0 <= seed < 2**32"),
    ("seed", "4294967296", "must be in 0 <= seed < 2**32"),
    ("model.name", "qkformer_4_348", "did you mean 'qkformer_4_384'"),
    ("model.T", "0", "must be at least 1"),
    ("model.T", "true", "expected int or null, got true"),
    ("model.ssa", "leaky", "expected fixed or original or null, got leaky"),
    ("model.mlp_ratio", "0", "must be above 0"),
    ("model.mlp_ratio", ".inf", "must be above 0"),
    ("model.drop_path_rate", "1", "must be in 0 <= rate < 1"),
    ("model.drop_path_rate", "-0.1", "must be in 0 <= rate < 1"),
    ("model.backend", "numpy", "expected auto or torch or cupy or null, got numpy"),
    ("model.skip_head", "true", "acts with weights only"),
    ("model.skip_head", "maybe", "expected bool, got maybe"),
    ("data.name", "digit", "did you mean 'digits'"),
    ("data.name", "cifar-100", "did you mean 'cifar100'"),
    ("data.download", "true", "only cifar10 and cifar100 can be fetched, not digits"),
    ("data.image_size", "-8", "must be at least 1"),
    ("data.batch_size", "0", "must be at least 1"),
    ("data.test_batch_size", "0", "must be at least 1"),
    ("data.split", "tebn", "only cifar10-dvs has a choice"),
    ("data.split", "half", "expected released or tebn or null, got half"),
    ("data.val_fraction", "1", "must be in 0 <= value < 1"),
    ("data.val_fraction", "-0.1", "must be in 0 <= value < 1"),
    ("data.val_fraction", ".nan", "must be in 0 <= value < 1"),
    ("data.crop_pct", "0", "must be in 0 < value <= 1"),
    ("data.crop_pct", "1.1", "must be in 0 < value <= 1"),
    ("data.mean", "[0.5]", "expected [float, float, float] or null, got [0.5]"),
    ("data.std", "[0.5, 0, 0.5]", "must all be above 0, got [0.5, 0.0, 0.5]"),
    ("data.on_damaged", "ignore", "expected error or skip, got ignore"),
    ("data.workers", "-1", "must be 0 or more"),
    ("augmentation.repeats", "0", "must be at least 1, got 0"),
    ("augmentation.crop_scale", "[0.9, 0.1]", "must be [least, most] above 0, got [0.9, 0.1]"),
    ("augmentation.crop_scale", "[0.0, 1.0]", "must be [least, most] above 0"),
    ("augmentation.crop_scale", "[0.5, 1.5]", "must be [least, most] above 0"),
    ("augmentation.crop_ratio", "[0.75, 1.25]", "acts with crop_scale only"),
    ("augmentation.crop_ratio", "[nan, 1]", "expected [float, float] or null, got ['nan', 1]"),
    ("augmentation.hflip", "1.5", "must be in 0 <= value <= 1"),
    ("augmentation.shift", "-1", "must be 0 or more"),
    ("augmentation.erasing_prob", "-0.25", "must be in 0 <= value <= 1"),
    ("augmentation.erasing_mode", "noise", "must be const, rand or pixel, got 'noise'"),
    ("augmentation.cutout", "-1", "must be 0 or more, got -1"),
    ("augmentation.cutmix_alpha", "-1", "must be 0 or more"),
    ("augmentation.switch_prob", "2", "must be in 0 <= value <= 1"),
    ("augmentation.switch_prob", "0.25", "acts with both mixup_alpha and cutmix_alpha only"),
    ("augmentation.mixup_alpha", "-1", "must be 0 or more"),
    ("augmentation.mixup_alpha", ".inf", "must be 0 or more"),
    ("augmentation.mixup_prob", "2", "must be in 0 <= value <= 1"),
    ("augmentation.mixup_off_epoch", "-1", "must be 0 or more"),
    ("loss.label_smoothing", "1", "must be in 0 <= value < 1"),
    ("loss.label_smoothing", "-0.1", "must be in 0 <= value < 1"),
    ("loss.name", "mse", "expected cross_entropy or bce, got mse"),
    ("loss.tet_lambda", "1.5", "must be in 0 <= value <= 1, got 1.5"),
    ("loss.tet_target", "2", "acts with tet_lambda only"),
    ("loss.tet_target", ".inf", "must be finite"),
    ("loss.teacher", "resnet81", "no model 'resnet81', did you mean 'resnet"),
    ("loss.teacher_weights", "x.pth", "acts with teacher only"),
    ("loss.distillation", "1", "must be in 0 < share < 1"),
    ("loss.distillation", "0.25", "acts with teacher only"),
    ("optimizer.name", "adamv", "no optimizer 'adamv', did you mean 'adam"),
    ("optimizer.name", "adahessian", "no optimizer 'adahessian'"),
    ("optimizer.layer_decay", "1", "must be in 0 < decay < 1"),
    ("optimizer.lr", "0", "must be above 0"),
    ("optimizer.lr", ".nan", "must be above 0"),
    ("optimizer.lr_per_batch", "0", "must be at least 1"),
    ("optimizer.weight_decay", "-1", "must be 0 or more"),
    ("optimizer.betas", "[0.9, 1.0]", "must both be in 0 <= beta < 1, got [0.9, 1.0]"),
    ("optimizer.betas", "[0.9]", "expected [float, float]"),
    ("optimizer.accumulation_steps", "0", "must be at least 1"),
    ("optimizer.accumulation_steps", "1.5", "expected int, got 1.5"),
    ("optimizer.clip_grad_norm", "0", "must be above 0"),
    ("optimizer.ema_decay", "1", "must be in 0 < decay < 1"),
    ("schedule.name", "one_circle", "expected cosine_per_step or cosine_per_epoch or one_cycle"),
    ("schedule.warmup_epochs", "-1", "must be 0 or more"),
    ("schedule.warmup_lr", "1", "must not be above optimizer.lr"),
    ("schedule.min_lr", "1", "must not be above optimizer.lr"),
    ("schedule.cooldown_epochs", "-1", "must be 0 or more"),
    ("schedule.cooldown_epochs", "0.5", "expected int, got 0.5"),
    ("compute.precision", "fp8", "expected fp32 or fp16 or bf16, got fp8"),
    ("compute.channels_last", "3", "expected auto or bool, got 3"),
    ("compute.compile", "maybe", "expected bool"),
    ("compute.cuda_graph", "always", "expected auto or bool, got always"),
    ("compute.grad_checkpointing", "2", "expected bool"),
    ("compute.sync_batchnorm", "2", "expected bool"),
    ("checkpoint.minutes", "-1", "must be 0 or more"),
    ("checkpoint.minutes", ".nan", "must be 0 or more"),
    ("checkpoint.every", "-1", "must be 0 or more"),
    ("checkpoint.every", "0.5", "expected int, got 0.5"),
    ("log.every", "-1", "must be 0 or more, got -1"),
    ("log.energy", "1", "expected bool"),
    ("log.wandb", "1", "expected bool, got 1"),
]


def test_every_key_is_tried_with_an_impossible_value():
    anything = {"model.weights", "model.args", "optimizer.args", "model.neuron", "data.root"}
    anything |= {"augmentation.auto_augment"}  # refused by the transforms, who know the policies
    assert {key for key, _, _ in LIMITS} == KEYS.keys() - anything


@pytest.mark.parametrize(("key", "value", "message"), LIMITS, ids=lambda part: str(part)[:30])
def test_impossible_values_are_refused_from_file_and_command_line(parse, key, value, message):
    for text, argv in ((nested(key, value), []), ("{}", [f"--{key}={value}"])):
        with pytest.raises(ConfigError) as caught:
            parse(text, *argv)
        line = str(caught.value)
        assert re.match(rf"(\S+/some.yml: )?{re.escape(key)}: ", line)
        assert message in line
        assert "\n" not in line and "<class" not in line


def test_null_is_refused_where_it_means_nothing(parse):
    take_none = [key for key in KEYS if NoneType not in get_args(KEYS[key])]
    assert 30 < len(take_none) < len(KEYS)
    for key in take_none:
        with pytest.raises(ConfigError, match=rf"some\.yml: {key}: expected .*, got null$"):
            parse(nested(key, "null"))


def test_what_does_not_go_together_is_refused():
    for argv, message in (
        (["--compute.compile=true", "--compute.grad_checkpointing=true"], "compute.compile: "),
        (["--optimizer.lr=1e-3", "--schedule.min_lr=2e-3"], "schedule.min_lr: "),
        (["--optimizer.lr=1e-3", "--schedule.warmup_lr=2e-3"], "schedule.warmup_lr: "),
        (["--optimizer.name=momentum"], "optimizer.betas: momentum has none"),
        (["--optimizer.args.momentum=0.5"], "optimizer.args.momentum: adamw takes none"),
        (["--optimizer.args.weight_decay=1"], "optimizer.args.weight_decay: has a key of its own"),
        (["--optimizer.args.eps=-1"], "optimizer.args: .*-1"),
        (["--loss.teacher=resnet18", "--loss.tet_lambda=0.1"], "loss.tet_lambda: "),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            parse_train(DEMO, argv)


@pytest.mark.parametrize("key", ["min_lr", "warmup_lr"])
def test_rates_of_the_schedule_are_held_against_the_scaled_peak(key):
    # peaks of 0.001 with one process and 0.002 with two
    scaled = ["--optimizer.lr=0.008", "--optimizer.lr_per_batch=256", "--data.batch_size=32"]
    config, _ = parse_train(DEMO, [*scaled, f"--schedule.{key}=0.0015"])
    config.check_rates(processes=2)
    with pytest.raises(ConfigError) as caught:
        config.check_rates(processes=1)
    assert str(caught.value) == (
        f"schedule.{key}: must not be above optimizer.lr "
        "(0.001, scaled from 0.008 for 256 samples per step to 32), got 0.0015"
    )
    # more than the unscaled rate, less than what it is scaled to
    config, _ = parse_train(DEMO, [*scaled, f"--schedule.{key}=0.01"])
    config.check_rates(processes=16)


def test_a_model_may_start_from_weights_without_their_head():
    config, _ = parse_train(DEMO, ["--model.weights=x.pth", "--model.skip_head=true"])
    assert (config.model.weights, config.model.skip_head) == ("x.pth", True)
    assert not {"weights", "skip_head", "name", "args"} & config.model.arguments().keys()


WRONG = [
    ("epohcs: 3", "epohcs", "did you mean 'epochs'"),
    ("optimizer: {lrr: 3}", "optimizer.lrr", "did you mean 'optimizer.lr'"),
    ("lr: 3", "'lr'", "did you mean 'optimizer.lr'"),
    ("model: {lr: 3}", "model.lr", "did you mean 'optimizer.lr'"),
    ("batch_size: 3", "batch_size", "did you mean 'data.batch_size'"),
    # as the released Max-Former YAMLs have it
    ("schedule: {warmup_epoch: 3}", "schedule.warmup_epoch", "did you mean 'schedule.warmup_epoch"),
    ("compute: {amp: true}", "compute.amp", "unknown key 'compute.amp'"),
    ("epochs: many", "epochs", "expected int, got many"),
    ("model: {args: 3}", "model.args", "expected {key: value, ...}"),
    ("optimizer: 3", "optimizer", "expected keys below it"),
    ("model: {args: {T: 4}}", "model.args.T", "model.T"),
    ("model: {args: {num_classes: 4}}", "model.args.num_classes", "data set"),
    ("model: [", "some.yml", "not valid YAML"),
    ("", "some.yml", "expected 'key: value'"),
    ("model:", "model", "expected keys below it"),
]


@pytest.mark.parametrize(("text", "key", "message"), WRONG, ids=[case[0] for case in WRONG])
def test_nonsense_in_a_file_names_the_file_the_key_and_what_would_do(parse, text, key, message):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    line = str(caught.value)
    assert key in line and message in line
    assert "some.yml: " in line or "has a key of its own" in line or "by the data set" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer.lrr", "3"], "--optimizer.lrr, did you mean '--optimizer.lr'"),
        (["--lr", "3"], "--lr, did you mean '--optimizer.lr'"),
        (["--outptu", "x"], "--outptu, did you mean '--output'"),
        (["--print-config"], "--print-config, did you mean '--print_config'"),
        (["--data.batch-size=3"], "did you mean '--data.batch_size'"),
        (["--warmup_epoch=3"], "--warmup_epoch, did you mean '--schedule.warmup_epochs'"),
        (["--compile"], "--compile, did you mean '--compute.compile'"),
        (["--ssa=original"], "--ssa, did you mean '--model.ssa'"),
        (["--time_steps=2"], "--time_steps: is an option of test.py only"),
        (["--checkpoint", "x.pth"], "checkpoint: expected keys below it"),
        (["--checkpoint.every=-1"], "checkpoint.every: must be 0 or more, got -1"),
        (["--compute.precision=half"], "compute.precision: expected fp32 or fp16 or bf16"),
        (["--local-rank=0"], "--local-rank 0: is for launchers"),
        (["--local-rank=first"], "--local-rank first: is for launchers"),
        (["surplus"], "surplus"),
        (["--optimizer.lr", "fast"], "optimizer.lr: expected float, got fast"),
        (["--optimizer.lr"], "--optimizer.lr: expected one argument"),
        (["--dry_run", "true"], "unexpected argument 'true'"),
        (["--dry_run=true"], "--dry_run: takes no value"),
        (["--device", "tpu"], "--device: expected auto or cpu or cuda, got tpu"),
        (["--config", "nowhere.yml"], "nowhere.yml: No such file"),
        (["--config", str(CONFIGS)], "Is a directory"),
    ],
    ids=str,
)
def test_nonsense_on_the_command_line_is_one_line_and_status_2(tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        main.train(DEMO, ["--output", str(tmp_path / "run"), *argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("epochs: 3\nseed: 1\nepochs: 4\n", 3, "epochs", 1),
        ("model:\n  T: 2\n\n  T: 2\n", 4, "T", 2),
        ("model: {T: 2}\ndata: {workers: 1}\nmodel: {ssa: fixed}\n", 3, "model", 1),
        ("model:\n  args:\n    depths: [1]\n    'depths': [2]\n", 4, "depths", 3),
        ("model: {args: {depths: [{a: 1, a: 2}]}}\n", 1, "a", 1),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines(parse, text, line, key, first):
    expected = f"line {line}: key {key!r} is given in line {first} already, remove one of them"
    with pytest.raises(ConfigError, match=f"some.yml: {expected}$"):
        parse(text)


def test_a_key_may_override_what_is_merged_in(parse):
    config = parse("model: {args: {one: &one {a: 1, b: 2}, other: {<<: *one, b: 3}}}")
    assert config.model.args["other"] == {"a": 1, "b": 3}


def test_a_file_without_required_keys_names_them(write):
    with pytest.raises(ConfigError, match=r"required: epochs, .*optimizer\.lr"):
        parse_train(Path(write("seed: 1")), [])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.args.embed_dims=32", "did you mean 'embed_dim'"),
        ("--model.neuron=lfi", "neuron"),
        ("--model.args.num_heads=5", "model"),
        pytest.param(
            "--model.backend=cupy",
            "cupy",
            marks=pytest.mark.skipif(not loader.unavailable(), reason="CuPy's kernels run here"),
        ),
        ("--data.image_size=18", "multiple of 4"),
        ("--data.batch_size=2000", "data.batch_size"),
        ("--data.root=/data", "data.root"),
    ],
)
def test_what_model_or_data_refuse_is_one_line_too(tmp_path, capsys, option, message):
    with pytest.raises(SystemExit) as stop:
        main.train(DEMO, ["--output", str(tmp_path), "--device", "cpu", option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_is_loaded_for_a_configuration_that_makes_no_sense(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry.DATASETS, "digits", lambda *_, **__: pytest.fail("data was loaded")
    )
    with pytest.raises(SystemExit):
        main.train(DEMO, ["--output", str(tmp_path), "--optimizer.lr", "0"])


# ---------------------------------------------------------------------------------------- testing


def test_testing_refuses_what_would_not_act():
    idle = [key for key in KEYS if key not in ACT_IN_TESTING]
    sections = {key.partition(".")[0] for key in idle} - {"model", "data", "compute", "checkpoint"}
    for key in {*idle, *sections}:
        with pytest.raises(ConfigError, match=rf"^--{re.escape(key)}: acts in training only$"):
            parse_test(DEMO, [*TEST, f"--{key}", "{}"])


def test_what_testing_accepts_it_takes_over():
    values = {"model.name": "qkformer_2_256", "model.ssa": "original", "model.backend": "torch"}
    values |= {"model.args": "{embed_dim: 32}", "model.neuron": "if", "data.on_damaged": "skip"}
    values |= {"data.name": "cifar10", "data.root": "x", "data.download": "true"}
    values |= {"data.split": "null", "compute.precision": "bf16", "compute.channels_last": "true"}
    values |= {"data.mean": "null", "data.std": "null"}
    values = {key: values.get(key, "true" if KEYS[key] is bool else "1") for key in ACT_IN_TESTING}
    config, _ = parse_test(DEMO, [*TEST, *(f"--{key}={values[key]}" for key in values)])
    for key, value in values.items():
        assert value_of(config, key) == yaml.safe_load(value), key


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--time_steps=0"], "model.T: must be at least 1, got 0"),
        (["--time_steps=two"], "--time_steps: expected int or null, got two"),
        (["--input_size=0"], "data.image_size: must be at least 1, got 0"),
        (["--ssa=leaky"], "--ssa: expected fixed or original or both or null, got leaky"),
        (["--weights=best"], "--weights: expected trained or ema, got best"),
        (["--resume=auto"], "--resume: is an option of train.py only"),
        (["--dry_run"], "--dry_run: is an option of train.py only"),
        (["--chekpoint=x"], "--chekpoint, did you mean '--checkpoint'"),
        (["--time_step=2"], "--time_step, did you mean '--time_steps'"),
        (["--checkpoint"], "--checkpoint: expected one argument"),
        (["--data={val_fraction: 0.3}"], "--data.val_fraction: acts in training only"),
    ],
    ids=str,
)
def test_nonsense_for_testing_is_one_line(argv, message):
    with pytest.raises(ConfigError) as caught:
        parse_test(DEMO, [*TEST, *argv])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_testing_needs_a_checkpoint():
    with pytest.raises(ConfigError, match="--checkpoint: required"):
        parse_test(DEMO, [])


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint of a run with these options, in which some keys are changed."""

    def checkpoint(*argv, **changes):
        config = asdict(parse_train(DEMO, argv)[0])
        for key, value in changes.items():
            config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
        path = tmp_path / "last.pth"
        torch.save({"model": {"head.weight": torch.ones(1)}, "config": config}, path)
        return path

    return checkpoint


OTHER_DATA = CONFIGS / "cifar10_dvs_qkformer.yml"


def test_a_checkpoint_of_our_own_is_tested_as_it_was_trained(checkpoint):
    argv = ["--model.T=3", "--model.args.depths=[1, 1, 1]", "--data.crop_pct=0.5"]
    idle = ["--model.weights=x", "--compute.grad_checkpointing=true", "--model.drop_path_rate=0.5"]
    path = checkpoint(*argv, *idle, "--optimizer.lr=0.125")
    config, options = parse_test(OTHER_DATA, ["--checkpoint", str(path)])
    assert options.source == f"configuration: the one recorded in {path}"
    trained, _ = parse_train(DEMO, argv)
    for key in ACT_IN_TESTING:
        assert value_of(config, key) == value_of(trained, key), key
    assert config.model.weights is None
    assert not config.compute.grad_checkpointing


def test_the_command_line_and_its_files_come_before_what_a_checkpoint_holds(checkpoint):
    path = str(checkpoint("--model.T=3", "--compute.grad_checkpointing=true"))
    argv = ["--checkpoint", path, "--model.args.num_heads=2", "--compute.compile=true"]
    config, _ = parse_test(OTHER_DATA, [*argv, "--time_steps=2", "--input_size=24"])
    assert (config.model.T, config.data.image_size, config.data.name) == (2, 24, "digits")
    assert config.model.args == {"embed_dim": 64, "num_heads": 2}
    assert config.compute.compile
    config, options = parse_test(DEMO, ["--checkpoint", path, "--config", str(OTHER_DATA)])
    assert (config.model.T, config.data.name) == (16, "cifar10-dvs")
    assert options.source == f"configuration: {OTHER_DATA}"


def test_keys_that_a_checkpoint_lacks_have_their_defaults_and_those_of_others_are_named(checkpoint):
    changes = {"model": {"spikes": 3}, "optimizer": {"name": "lion"}, "schedule": {"name": "flat"}}
    path = checkpoint(**changes, loss=3, extra={"x": 1})
    content = torch.load(path)
    del content["config"]["compute"], content["config"]["log"], content["config"]["data"]["workers"]
    torch.save(content, path)
    config, options = parse_test(OTHER_DATA, ["--checkpoint", str(path)])
    assert (config.compute, config.data.workers) == (ComputeConfig(), 0)
    expected = f"the one recorded in {path}; this version has no model.spikes"
    assert options.source == f"configuration: {expected}"


def test_what_acts_in_a_checkpoints_configuration_has_to_be_possible(checkpoint):
    for changes, message in (
        ({"model": {"T": "many"}}, "last.pth: model.T: expected int or null, got many"),
        ({"model": {"T": 0}}, "^model.T: must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_test(DEMO, ["--checkpoint", str(checkpoint(**changes))])


@pytest.mark.parametrize("held", [None, {"model": {"T": 3}}, {"lr": 0.1}, "config.yml"])
def test_files_of_others_are_tested_as_the_default_file_says(tmp_path, held):
    path = tmp_path / "published.pth"
    torch.save({"model": {"head.weight": torch.ones(1)}, "config": held}, path)
    config, options = parse_test(OTHER_DATA, ["--checkpoint", str(path)])
    assert (config.model.T, config.data.name) == (16, "cifar10-dvs")
    assert options.source == f"configuration: {OTHER_DATA}"


# ----------------------------------------------------------------------------------- comparisons


def test_changed_keys_are_named_with_both_values_but_for_what_only_says_where():
    old = {"epochs": 1, "data": {"root": "a", "workers": 0}, "optimizer": {"betas": (0.1, 0.2)}}
    new = {"epochs": 2, "data": {"root": "b", "workers": 9}, "optimizer": {"betas": [0.1, 0.2]}}
    assert changed_keys(old, old) == []
    assert changed_keys(old, new) == ["epochs: 1 -> 2"]
    assert changed_keys({}, {"model": {"args": {"x": 1}}}) == ["model.args.x: None -> 1"]
    for key in FREE_ON_RESUME:
        section, _, inner = key.partition(".")
        assert key in KEYS
        assert changed_keys({section: {inner: 1}}, {section: {inner: 2}}) == []
