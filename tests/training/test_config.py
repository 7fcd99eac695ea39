"""Command lines and YAML files: what is asked for acts, what makes no sense stops at once."""

import re
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml

from qkformer.data import registry
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.source import DataConfig
from qkformer.neurons.cuda import loader
from qkformer.training import cli, run
from qkformer.training.cli import (
    TEST_OPTIONS,
    TESTED_SECTIONS,
    TRAIN_OPTIONS,
    TRAINING_ONLY,
    parse_test,
    parse_train,
)
from qkformer.training.config import (
    FREE_ON_RESUME,
    SECTIONS,
    CheckpointConfig,
    ComputeConfig,
    ConfigError,
    LossConfig,
    ModelConfig,
    differences,
    key_types,
    nearest,
    to_yaml,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yml"))
DEMO = CONFIGS / "demo_digits.yml"


def write(folder, text):
    file = folder / "some.yml"
    file.write_text(text)
    return str(file)


def leaves():
    return [key for key in key_types() if key not in SECTIONS]


# ---------------------------------------------------------------------------- what is asked for


def test_the_command_line_overrides_the_file_whatever_comes_first():
    config, _ = parse_train(
        Path("unused.yml"),
        ["--epochs", "3", "--optimizer.lr=0.25", "--config", str(DEMO), "--seed", "7"],
    )
    assert (config.epochs, config.optimizer.lr, config.seed) == (3, 0.25, 7)
    assert config.data.batch_size == 32


def test_a_later_file_overrides_key_by_key(tmp_path):
    later = write(tmp_path, "model:\n  T: 2\n")
    config, _ = parse_train(DEMO, ["--config", str(DEMO), "--config", later])
    assert (config.model.T, config.model.name) == (2, "qkformer_4_384")


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


def test_options_besides_the_configuration():
    _, options = parse_train(DEMO, [])
    assert (options.output, options.resume) == (Path("runs/demo_digits"), "auto")
    _, options = parse_train(DEMO, ["--output", "x", "--resume", "y.pth", "--device", "cpu"])
    assert (options.output, options.resume, options.device) == (Path("x"), "y.pth", "cpu")


def test_options_of_testing():
    config, options = parse_test(DEMO, ["--checkpoint", "x/best.pth"])
    assert options == cli.TestOptions(Path("x/best.pth"), Path("x"), "auto", None, "trained", None)
    assert config == parse_train(DEMO, [])[0]
    argv = ["--checkpoint=x/best.pth", "--output=y", "--device=cpu", "--ssa=both", "--weights=ema"]
    config, options = parse_test(DEMO, [*argv, "--input_size=24", "--time_steps", "2"])
    assert options == cli.TestOptions(Path("x/best.pth"), Path("y"), "cpu", "both", "ema", 2)
    assert (config.data.image_size, config.model.T) == (24, 2)
    assert config.model.ssa == "fixed"  # what --ssa says is done by the test itself, once or twice


def test_the_checkpoint_to_test_leaves_the_section_of_that_name_alone(tmp_path):
    file = write(tmp_path, "checkpoint: {every: 7}")
    argv = ["--config", str(DEMO), "--config", file, "--checkpoint", "x/best.pth"]
    config, options = parse_test(DEMO, argv)
    assert config.checkpoint.every == 7
    assert options.checkpoint == Path("x/best.pth")


@pytest.mark.parametrize("option", [["--local-rank=3"], ["--local_rank=3"], ["--local_rank", "3"]])
@pytest.mark.parametrize(
    "parse", [parse_train, lambda file, argv: parse_test(file, ["--checkpoint", "x", *argv])]
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


# ----------------------------------------------------------------------- to a file, and back again


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_resolved_configuration_reads_back_as_itself(tmp_path, file):
    config, _ = parse_train(file, ["--model.mlp_ratio", "null", "--optimizer.betas=[0.8,0.9]"])
    again, _ = parse_train(Path(write(tmp_path, to_yaml(config))), [])
    assert again == config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_print_config_can_be_read_again(tmp_path, capsys, file):
    printed = write(tmp_path, print_config(parse_train, file, ["--epochs", "5"], capsys))
    assert parse_train(Path(printed), [])[0] == parse_train(file, ["--epochs", "5"])[0]


def test_print_config_of_testing_can_be_read_again(tmp_path, capsys):
    argv = ["--checkpoint", "x/best.pth", "--time_steps", "2", "--weights", "ema"]
    printed = write(tmp_path, print_config(parse_test, DEMO, argv, capsys))
    assert parse_test(Path(printed), argv[:2]) == parse_test(DEMO, argv)


@pytest.mark.parametrize(
    ("text", "parse", "message"),
    [
        ("resume: auto", parse_test, "resume: is an option of train.py only"),
        ("time_steps: 2", parse_train, "time_steps: is an option of test.py only"),
        ("weights: ema", parse_train, "weights: is an option of test.py only"),
        ("config: x.yml", parse_train, "unknown key 'config'"),
        ("checkpoint: x.pth", parse_test, "checkpoint: expected keys below it, got 'x.pth'"),
    ],
)
def test_options_in_a_file_are_those_of_the_command(tmp_path, text, parse, message):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        parse(DEMO, ["--config", str(DEMO), "--config", file])
    assert str(caught.value) == f"{file}: {message}"


def print_config(parse, file, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(file, [*argv, "--print_config"])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("parse", [parse_train, parse_test])
def test_help_explains_every_key_and_option(capsys, parse):
    with pytest.raises(SystemExit):
        parse(DEMO, ["--help"])
    usage, text = capsys.readouterr().out.split("options:\n")
    text = " ".join(text.split())
    options = TRAIN_OPTIONS if parse is parse_train else TEST_OPTIONS
    for key in ("config", *options, *leaves()):
        # the metavar or the choices come after the name, then the explanation, then the type
        found = re.search(rf"--{re.escape(key)} (\{{.*?\}}|\[.*?\]|\S+) (.*?)(\(|--)", text)
        assert found and len(found[2]) > len("no words"), key
        assert key not in options or f"--{key}" in usage
    assert parse is parse_train or "--checkpoint PATH" in usage


def help_of(default, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(default, [*argv, "--help"])
    assert stop.value.code in (0, None)
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_values_that_will_apply(tmp_path, capsys):
    text = help_of(DEMO, [], capsys)
    config, _ = parse_train(DEMO, [])
    for key in leaves():
        section, _, inner = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, inner)
        shown = re.escape("null" if value is None else str(value))
        assert re.search(rf"--{re.escape(key)} ((?! --).)*default: {shown}\)", text), key
    odd = tmp_path / "odd[1]*.yml"  # a name that could be taken for a pattern
    odd.write_text("seed: 77\nmodel: {T: 9}")
    text = help_of(Path("nowhere.yml"), ["--config", str(DEMO), "--config", str(odd)], capsys)
    for shown in ("type: int, default: 77)", "null, default: 9)", "default: qkformer_4_384)"):
        assert shown in text


def test_help_does_without_a_file_that_is_missing(capsys):
    text = help_of(Path("nowhere.yml"), [], capsys)
    assert "no existing default config file found" in text
    assert "--seed SEED Of the weights, the order of the data and every other" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("epohcs: 3", "did you mean 'epochs'"),
        ("epochs: many", "epochs: expected int, got many"),
    ],
)
def test_help_with_a_file_that_is_wrong_says_so(tmp_path, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_train(DEMO, ["--config", write(tmp_path, text), "--help"])


# --------------------------------------------------------------------------- what makes no sense

# An impossible value of every key that has limits, and what is said of it.
LIMITS = [
    ("epochs", "0", "must be at least 1, got 0"),
    ("epochs", "-3", "must be at least 1"),
    ("seed", "-1", "must be in 0 <= seed < 2**32"),
    ("seed", "4294967296", "must be in 0 <= seed < 2**32"),
    ("model.name", "qkformer_4_348", "did you mean 'qkformer_4_384'"),
    ("model.T", "0", "must be at least 1"),
    ("model.T", "true", "expected int or null, got "),
    ("model.ssa", "leaky", "expected fixed or original or null, got leaky"),
    ("model.mlp_ratio", "0", "must be above 0"),
    ("model.mlp_ratio", ".inf", "must be above 0"),
    ("model.drop_path_rate", "1", "must be in 0 <= rate < 1"),
    ("model.drop_path_rate", "-0.1", "must be in 0 <= rate < 1"),
    ("model.backend", "numpy", "expected auto or torch or cupy, got numpy"),
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
    ("data.on_damaged", "ignore", "expected error or skip, got ignore"),
    ("data.workers", "-1", "must be 0 or more"),
    ("augmentation.crop_scale", "[0.9, 0.1]", "must be [least, most] above 0, got [0.9, 0.1]"),
    ("augmentation.crop_scale", "[0.0, 1.0]", "must be [least, most] above 0"),
    ("augmentation.crop_scale", "[0.5, 1.5]", "must be [least, most] above 0"),
    ("augmentation.crop_ratio", "[0.75, 1.25]", "acts with crop_scale only"),
    ("augmentation.crop_ratio", "[nan, 1]", "expected tuple[float, float] or null, got ['nan', 1]"),
    ("augmentation.hflip", "1.5", "must be in 0 <= value <= 1"),
    ("augmentation.shift", "-1", "must be 0 or more"),
    ("augmentation.erasing_prob", "-0.25", "must be in 0 <= value <= 1"),
    ("augmentation.erasing_mode", "noise", "must be const, rand or pixel, got 'noise'"),
    ("augmentation.mixup_alpha", "-1", "must be 0 or more"),
    ("augmentation.mixup_alpha", ".inf", "must be 0 or more"),
    ("augmentation.mixup_prob", "2", "must be in 0 <= value <= 1"),
    ("augmentation.mixup_off_epoch", "-1", "must be 0 or more"),
    ("loss.label_smoothing", "1", "must be in 0 <= value < 1"),
    ("loss.label_smoothing", "-0.1", "must be in 0 <= value < 1"),
    ("optimizer.lr", "0", "must be above 0"),
    ("optimizer.lr", ".nan", "must be above 0"),
    ("optimizer.lr_per_batch", "0", "must be at least 1"),
    ("optimizer.weight_decay", "-1", "must be 0 or more"),
    ("optimizer.betas", "[0.9, 1.0]", "must both be in 0 <= beta < 1, got [0.9, 1.0]"),
    ("optimizer.betas", "[0.9]", "expected tuple[float, float]"),
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
    ("compute.channels_last", "3", "expected bool, got 3"),
    ("compute.compile", "maybe", "expected bool"),
    ("compute.grad_checkpointing", "2", "expected bool"),
    ("compute.sync_batchnorm", "2", "expected bool"),
    ("checkpoint.minutes", "-1", "must be 0 or more"),
    ("checkpoint.minutes", ".nan", "must be 0 or more"),
    ("checkpoint.every", "-1", "must be 0 or more"),
    ("checkpoint.every", "0.5", "expected int, got 0.5"),
]


def test_every_key_is_tried_with_an_impossible_value():
    anything = {"model.weights", "model.args", "model.neuron", "data.root"}
    anything |= {"augmentation.auto_augment"}  # refused by the transforms, who know the policies
    assert {key for key, _, _ in LIMITS} == set(leaves()) - anything


@pytest.mark.parametrize(("key", "value", "message"), LIMITS, ids=lambda part: str(part)[:30])
def test_impossible_values_are_refused_from_file_and_command_line(tmp_path, key, value, message):
    section, _, inner = key.rpartition(".")
    text = f"{section}: {{{inner}: {value}}}" if section else f"{inner}: {value}"
    for argv in (["--config", write(tmp_path, text)], [f"--{key}={value}"]):
        with pytest.raises(ConfigError) as caught:
            parse_train(DEMO, ["--config", str(DEMO), *argv])
        line = str(caught.value)
        assert line.startswith(f"{key}: ")
        assert message in line
        assert "\n" not in line and "<class" not in line


TAKE_NO_NULL = [key for key in leaves() if NoneType not in get_args(key_types()[key])]


@pytest.mark.parametrize("key", TAKE_NO_NULL)
def test_null_is_refused_where_it_means_nothing(tmp_path, key):
    section, _, inner = key.rpartition(".")
    text = f"{section}: {{{inner}: null}}" if section else f"{inner}: null"
    file = write(tmp_path, text)
    # what has no default is required, null is as if it were not there
    with pytest.raises(ConfigError, match=rf"^{key}: expected .*got (null|None)|required: {key}$"):
        parse_train(DEMO, ["--config", str(DEMO), "--config", file])


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        (CheckpointConfig, {"every": -1}, "every"),
        (CheckpointConfig, {"minutes": -0.5}, "minutes"),
        (ComputeConfig, {"compile": True, "grad_checkpointing": True}, "compile"),
        (LossConfig, {"label_smoothing": 1.0}, "label_smoothing"),
        (ModelConfig, {"name": "qkformer_4_384", "skip_head": True}, "skip_head"),
        (ModelConfig, {"name": "qkformer_4_384", "args": {"ssa": "fixed"}}, "args.ssa"),
        (
            DataConfig,
            {"name": "digits", "image_size": 8, "batch_size": 4, "workers": -1},
            "workers",
        ),
        (AugmentationConfig, {"hflip": -1}, "hflip"),
    ],
)
def test_sections_refuse_impossible_values_by_themselves(section, values, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        section(**values)


def test_what_does_not_go_together_is_refused():
    for argv, message in (
        (["--compute.compile=true", "--compute.grad_checkpointing=true"], "compute.compile: "),
        (["--optimizer.lr=1e-3", "--schedule.min_lr=2e-3"], "schedule.min_lr: "),
        (["--optimizer.lr=1e-3", "--schedule.warmup_lr=2e-3"], "schedule.warmup_lr: "),
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
    ("data: {batchsize: 3}", "data.batchsize", "did you mean 'data.batch_size'"),
    ("lr: 3", "'lr'", "did you mean 'optimizer.lr'"),
    ("model: {lr: 3}", "model.lr", "did you mean 'optimizer.lr'"),
    ("batch_size: 3", "batch_size", "did you mean 'data.batch_size'"),
    ("warmup_epoch: 3", "warmup_epoch", "did you mean 'schedule.warmup_epochs'"),
    # as the released Max-Former YAMLs have it
    ("schedule: {warmup_epoch: 3}", "schedule.warmup_epoch", "did you mean 'schedule.warmup_epoch"),
    ("optimizer: {accumulation: 3}", "optimizer.accumulation", "'optimizer.accumulation_steps'"),
    ("optimizer: {warmup_lr: 0}", "optimizer.warmup_lr", "did you mean 'schedule.warmup_lr'"),
    ("compute: {amp: true}", "compute.amp", "unknown key 'compute.amp'"),
    ("checkpoint: {minute: 3}", "checkpoint.minute", "did you mean 'checkpoint.minutes'"),
    ("epochs: many", "epochs", "expected int, got many"),
    ("epochs: 2.5", "epochs", "expected int"),
    ("optimizer: {lr: fast}", "optimizer.lr", "expected float, got fast"),
    ("model: {args: 3}", "model.args", "expected {key: value, ...}"),
    ("optimizer: 3", "optimizer", "expected keys below it"),
    ("model: {args: {T: 4}}", "model.args.T", "model.T"),
    ("model: {args: {num_classes: 4}}", "model.args.num_classes", "data set"),
    ("model: [", "some.yml", "not valid YAML"),
    ("", "some.yml", "expected 'key: value'"),
    ("model:", "model", "expected keys below it"),
]


@pytest.mark.parametrize(("text", "key", "message"), WRONG, ids=[case[0] for case in WRONG])
def test_nonsense_in_a_file_names_the_key_and_what_would_do(tmp_path, text, key, message):
    with pytest.raises(ConfigError) as caught:
        parse_train(DEMO, ["--config", str(DEMO), "--config", write(tmp_path, text)])
    assert key in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer.lrr", "3"], "--optimizer.lrr, did you mean '--optimizer.lr'"),
        (["--lr", "3"], "--lr, did you mean '--optimizer.lr'"),
        (["--epoch", "3"], "--epoch, did you mean '--epochs'"),
        (["--outptu", "x"], "--outptu, did you mean '--output'"),
        (["--print-config"], "--print-config, did you mean '--print_config'"),
        (["--data.batch-size=3"], "did you mean '--data.batch_size'"),
        (["--batch_size=3"], "--batch_size, did you mean '--data.batch_size'"),
        (["--warmup_epoch=3"], "--warmup_epoch, did you mean '--schedule.warmup_epochs'"),
        (["--optimizer.accumulation=3"], "did you mean '--optimizer.accumulation_steps'"),
        (["--name=qkformer_4_384"], "--name, did you mean '--model.name'"),
        (["--compile"], "--compile, did you mean '--compute.compile'"),
        (["--ssa=original"], "--ssa, did you mean '--model.ssa'"),
        (["--time_steps=2"], "--time_steps: is an option of test.py only"),
        (["--input_size", "2"], "--input_size: is an option of test.py only"),
        (["--checkpoint", "x.pth"], "checkpoint: expected keys below it"),
        (["--checkpoint.every=-1"], "checkpoint.every: must be 0 or more, got -1"),
        (["--compute.precision=half"], "compute.precision: expected fp32 or fp16 or bf16"),
        (["--local-rank=0"], "--local-rank 0: is for launchers"),
        (["--local-rank=first"], "invalid int value: 'first'"),
        (["surplus"], "surplus"),
        (["--optimizer.lr", "fast"], "optimizer.lr: expected float, got fast"),
        (["--optimizer.lr", "-1"], "optimizer.lr: must be above 0"),
        (["--optimizer.lr"], "--optimizer.lr: expected one argument"),
        (["--device", "tpu"], "--device"),
        (["--config", "nowhere.yml"], "nowhere.yml: No such file"),
        (["--config", str(CONFIGS)], "Is a directory"),
    ],
    ids=str,
)
def test_nonsense_on_the_command_line_is_one_line_and_status_2(tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        run.train(DEMO, ["--output", str(tmp_path / "run"), *argv])
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
def test_a_key_given_twice_is_refused_with_its_lines(tmp_path, text, line, key, first):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        parse_train(DEMO, ["--config", str(DEMO), "--config", file])
    expected = f"line {line}: key {key!r} is given in line {first} already, remove one of them"
    assert str(caught.value) == f"{file}: {expected}"


def test_a_key_may_override_what_is_merged_in(tmp_path):
    text = "model: {args: {one: &one {a: 1, b: 2}, other: {<<: *one, b: 3}}}"
    file = write(tmp_path, text)
    config, _ = parse_train(DEMO, ["--config", str(DEMO), "--config", file])
    assert config.model.args["other"] == {"a": 1, "b": 3}


def test_a_file_without_required_keys_names_them(tmp_path):
    with pytest.raises(ConfigError, match=r"epochs.*optimizer\.lr"):
        parse_train(Path(write(tmp_path, "seed: 1")), [])


ACT_IN_TRAINING = [key for key in leaves() if key.partition(".")[0] not in TESTED_SECTIONS]


@pytest.mark.parametrize("key", [*ACT_IN_TRAINING, *TRAINING_ONLY])
def test_testing_refuses_what_would_not_act(key):
    for argv in ([f"--{key}=1"], [f"--{key}", "1"]):
        with pytest.raises(ConfigError, match=rf"^--{re.escape(key)}: acts in training only$"):
            parse_test(DEMO, ["--checkpoint", "x", *argv])


@pytest.mark.parametrize("section", sorted(set(SECTIONS) - {*TESTED_SECTIONS, "checkpoint"}))
def test_testing_refuses_whole_sections_that_would_not_act(section):
    with pytest.raises(ConfigError, match=f"^--{section}: acts in training only$"):
        parse_test(DEMO, ["--checkpoint", "x", f"--{section}", "{}"])


ACT_IN_TESTING = sorted({*leaves()} - {*ACT_IN_TRAINING, *TRAINING_ONLY, "data.download"})


@pytest.mark.parametrize("key", ACT_IN_TESTING)
def test_what_testing_accepts_it_takes_over(key):
    values = {"model.name": "qkformer_2_256", "model.ssa": "original", "model.backend": "torch"}
    values |= {"model.args": "{embed_dim: 32}", "model.neuron": "if", "data.on_damaged": "skip"}
    values |= {
        "data.name": "cifar10",
        "data.root": "x",
        "data.split": "null",
        "compute.precision": "bf16",
    }
    section, _, inner = key.partition(".")
    value = values.get(key, "true" if key_types()[key] is bool else "1")
    config, _ = parse_test(DEMO, ["--checkpoint", "x", f"--{key}={value}"])
    taken = getattr(getattr(config, section), inner)
    assert taken == yaml.safe_load(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--time_steps=0"], "model.T: must be at least 1, got 0"),
        (["--time_steps=two"], "time_steps: expected int, got two"),
        (["--input_size=0"], "data.image_size: must be at least 1, got 0"),
        (["--ssa=leaky"], "--ssa: invalid choice: 'leaky'"),
        (["--weights=best"], "--weights: invalid choice: 'best'"),
        (["--resume=auto"], "--resume: is an option of train.py only"),
        (["--chekpoint=x"], "--chekpoint, did you mean '--checkpoint'"),
        (["--time_step=2"], "--time_step, did you mean '--time_steps'"),
        (["--checkpoint"], "--checkpoint: expected one argument"),
    ],
    ids=str,
)
def test_nonsense_for_testing_is_one_line(argv, message):
    with pytest.raises(ConfigError) as caught:
        parse_test(DEMO, ["--checkpoint", "x/best.pth", *argv])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_testing_needs_a_checkpoint():
    with pytest.raises(ConfigError, match="--checkpoint"):
        parse_test(DEMO, [])


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
        run.train(DEMO, ["--output", str(tmp_path), "--device", "cpu", option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_is_loaded_for_a_configuration_that_makes_no_sense(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry.DATASETS, "digits", lambda *_, **__: pytest.fail("data was loaded")
    )
    with pytest.raises(SystemExit):
        run.train(DEMO, ["--output", str(tmp_path), "--optimizer.lr", "0"])


# ----------------------------------------------------------------------------------- comparisons


def test_differences_name_keys_with_both_values_and_skip_what_only_says_where():
    old = {"epochs": 1, "data": {"root": "a", "workers": 0}, "optimizer": {"betas": (0.1, 0.2)}}
    new = {"epochs": 2, "data": {"root": "b", "workers": 9}, "optimizer": {"betas": [0.1, 0.2]}}
    assert differences(old, old) == []
    assert differences(old, new) == ["epochs: 1 -> 2"]
    assert differences({}, {"model": {"args": {"x": 1}}}) == ["model.args.x: None -> 1"]


@pytest.mark.parametrize("key", FREE_ON_RESUME)
def test_what_may_change_between_two_sittings_is_a_key_and_no_difference(key):
    section, _, inner = key.partition(".")
    assert key in leaves()
    assert differences({section: {inner: 1}}, {section: {inner: 2}}) == []


def test_nothing_is_suggested_where_nothing_is_similar():
    assert nearest("zzz", ["epochs", "model.name"]) == ""
