"""Command lines and YAML files: what is asked for acts, what makes no sense stops at once."""

from pathlib import Path

import pytest
import yaml

from qkformer.data import datasets
from qkformer.training import run
from qkformer.training.cli import parse_test, parse_train
from qkformer.training.config import (
    SECTIONS,
    Config,
    ConfigError,
    differences,
    key_types,
    nearest,
    to_yaml,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
    _, options = parse_test(DEMO, ["--checkpoint", "x/best.pth"])
    assert options.output == Path("x")


def test_the_resolved_configuration_reads_back_as_itself(tmp_path):
    config, _ = parse_train(DEMO, ["--model.mlp_ratio", "null"])
    again, _ = parse_train(Path(write(tmp_path, to_yaml(config))), [])
    assert again == config


def test_print_config_can_be_read_again(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(DEMO, ["--epochs", "5", "--print_config"])
    assert stop.value.code in (0, None)
    printed = write(tmp_path, capsys.readouterr().out)
    assert parse_train(Path(printed), [])[0] == parse_train(DEMO, ["--epochs", "5"])[0]


@pytest.mark.parametrize("parse", [parse_train, parse_test])
def test_help_explains_every_key(capsys, parse):
    with pytest.raises(SystemExit):
        parse(DEMO, ["--help"])
    words = capsys.readouterr().out.split()
    for key in leaves():
        # the metavar comes after the name, then the explanation, not at once the type
        explanation = words[words.index(f"--{key}") + 2]
        if key not in ("epochs", "seed"):
            assert not explanation.startswith("("), key


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yml")), ids=lambda file: file.name)
def test_shipped_configurations_spell_out_every_key_with_valid_values(file):
    config, _ = parse_train(file, [])
    content = yaml.safe_load(file.read_text())
    spelled = {
        f"{key}.{inner}" if key in SECTIONS else key
        for key, value in content.items()
        for inner in (value if key in SECTIONS else [key])
    }
    assert spelled == set(leaves())
    assert isinstance(config, Config)


# --------------------------------------------------------------------------- what makes no sense

WRONG = [
    ("epohcs: 3", "epohcs", "did you mean 'epochs'"),
    ("optimizer: {lrr: 3}", "optimizer.lrr", "did you mean 'optimizer.lr'"),
    ("data: {batchsize: 3}", "data.batchsize", "did you mean 'data.batch_size'"),
    ("lr: 3", "'lr'", "did you mean 'optimizer.lr'"),
    ("model: {lr: 3}", "model.lr", "did you mean 'optimizer.lr'"),
    ("epochs: many", "epochs", "expected int, got many"),
    ("epochs: 2.5", "epochs", "expected int"),
    ("optimizer: {lr: fast}", "optimizer.lr", "expected float, got fast"),
    ("optimizer: {betas: [0.1]}", "optimizer.betas", "expected tuple[float, float]"),
    ("model: {ssa: leaky}", "model.ssa", "expected fixed or original or null, got leaky"),
    ("model: {args: 3}", "model.args", "expected {key: value, ...}"),
    ("optimizer: 3", "optimizer", "expected keys below it"),
    ("epochs: 0", "epochs", "at least 1, got 0"),
    ("seed: -1", "seed", "got -1"),
    ("optimizer: {lr: 0}", "optimizer.lr", "above 0"),
    ("optimizer: {lr: .nan}", "optimizer.lr", "above 0"),
    ("optimizer: {weight_decay: -1}", "optimizer.weight_decay", "0 or more"),
    ("data: {batch_size: 0}", "data.batch_size", "at least 1"),
    ("data: {image_size: -8}", "data.image_size", "at least 1"),
    ("data: {name: digit}", "data.name", "did you mean 'digits'"),
    ("model: {name: qkformer_4_348}", "model.name", "did you mean 'qkformer_4_384'"),
    ("model: {T: 0}", "model.T", "at least 1"),
    ("model: {mlp_ratio: 0}", "model.mlp_ratio", "above 0"),
    ("model: {drop_path_rate: 1}", "model.drop_path_rate", "rate < 1"),
    ("model: {args: {T: 4}}", "model.args.T", "model.T"),
    ("model: {args: {num_classes: 4}}", "model.args.num_classes", "data set"),
    ("loss: {label_smoothing: 1}", "loss.label_smoothing", "value < 1"),
    ("augmentation: {shift: -1}", "augmentation.shift", "0 or more"),
    ("schedule: {name: one_circle}", "schedule.name", "expected one_cycle"),
    ("schedule: {warmup_epochs: -1}", "schedule.warmup_epochs", "0 or more"),
    ("schedule: {min_lr: 1}", "schedule.min_lr", "optimizer.lr"),
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
        (["--data.batch-size=3"], "did you mean '--data.batch_size'"),
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


def test_a_file_without_required_keys_names_them(tmp_path):
    with pytest.raises(ConfigError, match=r"epochs.*optimizer\.lr"):
        parse_train(Path(write(tmp_path, "seed: 1")), [])


@pytest.mark.parametrize("option", ["--epochs=3", "--optimizer.lr=1", "--seed=1"])
def test_testing_refuses_what_would_not_act(option):
    with pytest.raises(ConfigError, match="acts in training only"):
        parse_test(DEMO, ["--checkpoint", "x", option])


def test_testing_needs_a_checkpoint():
    with pytest.raises(ConfigError, match="--checkpoint"):
        parse_test(DEMO, [])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.args.embed_dims=32", "did you mean 'embed_dim'"),
        ("--model.neuron=lfi", "neuron"),
        ("--model.args.num_heads=5", "model"),
        ("--model.backend=cupy", "cupy"),
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
    monkeypatch.setitem(datasets.DATASETS, "digits", lambda _: pytest.fail("data was loaded"))
    with pytest.raises(SystemExit):
        run.train(DEMO, ["--output", str(tmp_path), "--optimizer.lr", "0"])


# ----------------------------------------------------------------------------------- comparisons


def test_differences_name_keys_with_both_values_and_skip_what_only_says_where():
    old = {"epochs": 1, "data": {"root": "a", "workers": 0}, "optimizer": {"betas": (0.1, 0.2)}}
    new = {"epochs": 2, "data": {"root": "b", "workers": 9}, "optimizer": {"betas": [0.1, 0.2]}}
    assert differences(old, old) == []
    assert differences(old, new) == ["epochs: 1 -> 2"]
    assert differences({}, {"model": {"args": {"x": 1}}}) == ["model.args.x: None -> 1"]


def test_nothing_is_suggested_where_nothing_is_similar():
    assert nearest("zzz", ["epochs", "model.name"]) == ""
