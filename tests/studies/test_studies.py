"""A study runs once, goes on where it was stopped, and its table says what the runs said."""

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
from training import few
from training.few import register, write_config

import benchmarks.study
from qkformer.analysis.tables import read_csv
from qkformer.studies.__main__ import main
from qkformer.studies.run import is_finished, run_study
from qkformer.studies.study import read_study
from qkformer.training import main as doors
from qkformer.training.config import ConfigError
from qkformer.training.metrics import TrainingError

STUDIES = sorted((Path(__file__).parents[2] / "configs/studies").glob("*.yml"))
STUDY = """
title: Two attentions
base: few.yml
published: a journal
set: {epochs: 1, schedule.warmup_epochs: 0.0}
retests: {ssa: [fixed, original], batch_size: [1, 20]}
variants:
  fixed: {title: without the leak, published: 71.5}
  original: {title: with it, group: attention, set: {model.ssa: original}}
"""


def write_study(folder: Path, text: str = STUDY) -> Path:
    write_config(folder)
    file = folder / "study.yml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study's file and its folder, with two seeds of each variant."""
    folder = tmp_path_factory.mktemp("study")
    file = write_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        main(["run", str(file), "--output", str(folder / "out"), "--seeds", "2"])
        yield file, folder / "out"


def runs(output: Path) -> list[Path]:
    return sorted(file.parent for file in output.glob("*/*/last.pth"))


@pytest.mark.slow
def test_every_variant_has_a_run_of_every_seed_that_fires(finished):
    _, output = finished
    names = [f"{variant}/seed{seed}" for variant in ("fixed", "original") for seed in (4, 5)]
    assert [str(run.relative_to(output)) for run in runs(output)] == names
    for run in runs(output):
        few.records(run)
        assert json.loads((run / "energy.json").read_text())["ssa"] == run.parent.name


@pytest.mark.slow
def test_a_finished_study_runs_nothing_again(finished):
    file, output = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.pth")}
    main(["run", str(file), "--output", str(output), "--seeds", "2"])
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.pth")} == before
    for run in runs(output):
        assert len((run / "retests/results.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_run_that_is_not_finished_goes_on(finished, tmp_path):
    """As from a study that was stopped behind the first of two epochs."""
    file, _ = finished
    longer = write_study(tmp_path, STUDY.replace("epochs: 1", "epochs: 2"))
    variant = read_study(longer).variants[0]
    folder = tmp_path / "out/fixed/seed4"
    main(["run", str(file), "--output", str(tmp_path / "out"), "--only", "fixed"])
    assert is_finished(folder, read_study(file).variants[0].config(0))
    assert not is_finished(folder, variant.config(0))
    with pytest.raises(ConfigError, match="epochs: 1 -> 2"):  # another run, and not this one's end
        run_study(read_study(longer), tmp_path / "out", only=["fixed"])


@pytest.mark.slow
def test_tables_have_mean_and_deviation_of_the_runs(finished, capsys):
    _, output = finished
    main(["table", str(output)])
    row, other = read_csv(output / "study.csv")
    accuracies = [few.records(run)[-1]["test_acc1"] for run in runs(output)[:2]]
    assert row["top-1, last epoch (%)"] == pytest.approx(mean(accuracies), rel=1e-12)
    assert row["top-1, last epoch (%) sd"] == pytest.approx(stdev(accuracies), rel=1e-12)
    assert (row["published (%)"], other["group"]) == (71.5, "attention")
    others = [few.records(run)[-1]["test_acc1"] for run in runs(output)[2:]]
    differences = [b - a for a, b in zip(accuracies, others, strict=True)]
    assert other["against the first"] == pytest.approx(mean(differences), abs=1e-9)
    assert "against the first" not in row
    printed = capsys.readouterr().out
    assert "| without the leak | 2 |" in printed and "published, a journal (%)" in printed
    for name in ("study.png", "retests.png", "study.md"):
        assert (output / name).stat().st_size > 0


@pytest.mark.slow
def test_the_table_of_an_installed_package_has_no_commit_to_name(finished, tmp_path, capsys):
    _, output = finished
    shutil.copytree(output, tmp_path / "copy")
    for run in runs(tmp_path / "copy"):
        facts = json.loads((run / "environment.json").read_text()) | {"commit": None}
        (run / "environment.json").write_text(json.dumps(facts))
    main(["table", str(tmp_path / "copy")])
    assert "; commit not known; " in capsys.readouterr().out


@pytest.mark.slow
def test_retests_are_those_of_test_py(finished):
    """In batches of one there is nobody before a sample whose potential could leak."""
    file, output = finished
    study = read_study(file)
    for run in runs(output):
        lines = [json.loads(line) for line in (run / "retests/results.jsonl").open()]
        accuracy = {(line["ssa"], line["batch_size"]): line["acc1"] for line in lines}
        assert list(accuracy) == list(study.retests.all())
        assert accuracy["fixed", 1] == accuracy["fixed", 20] == accuracy["original", 1]
        # as behind the last epoch, in which a batch has four samples
        if run.parent.name == "fixed":
            assert few.records(run)[-1]["test_acc1"] == accuracy["fixed", 20]


def test_jobs_of_an_array_share_the_runs(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("qkformer.studies.run.run_training", lambda _, o, __: started.append(o))
    monkeypatch.setattr("qkformer.studies.run._retest", lambda *_: None)
    register(monkeypatch)
    file = write_study(tmp_path)
    for job in ("0/3", "1/3", "2/3"):
        main(["run", str(file), "--output", str(tmp_path / "out"), "--seeds", "4", "--job", job])
    folders = [str(options.output.relative_to(tmp_path / "out")) for options in started]
    assert len(folders) == 8 and len(set(folders)) == 8


def test_a_run_that_fails_does_not_keep_the_others(tmp_path, monkeypatch):
    started = []

    def training(config, options, stop):
        started.append(options.output)
        if config.model.ssa == "original":
            raise TrainingError("the loss is nan")

    monkeypatch.setattr("qkformer.studies.run.run_training", training)
    monkeypatch.setattr("qkformer.studies.run._retest", lambda *_: None)
    register(monkeypatch)
    study = read_study(write_study(tmp_path))
    with pytest.raises(TrainingError, match=r"2 of 4 runs failed: .*original/seed4, .*seed5"):
        run_study(study, tmp_path / "out", seeds=2)
    assert len(started) == 4


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_studies_of_the_repository_can_be_read(file):
    study = read_study(file)
    first = [variant.keys for variant in study.variants]
    assert all(first.count(keys) == 1 for keys in first)  # no variant is there twice
    titles = [variant.title for variant in study.variants]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("title: Two attentions", "titel: x", "unknown key 'titel', did you mean 'title'?"),
        ("title: Two attentions", "", "title: required"),
        ("base: few.yml", "base: none.yml", "none.yml: No such file"),
        ("model.ssa: original", "model.sa: x", "unknown key 'model.sa', did you mean 'model.ssa'?"),
        ("model.ssa: original", "model.ssa: half", "variant original: model.ssa: expected fixed"),
        ("epochs: 1", "epochs: 0", "variant fixed: epochs: must be at least 1"),
        ("  original:", "  a/b:", "variant a/b: expected a name of letters, digits and _"),
        ("published: 71.5", "published: x", "variant fixed: published: expected float, got x"),
        ("[1, 20]", "[0]", "retests: batch_size: expected a list of numbers from 1, got [0]"),
        ("[fixed, original]", "fixed", "retests: ssa: expected a list of fixed, original"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path, monkeypatch, old, new, message):
    register(monkeypatch)
    assert old in STUDY
    with pytest.raises(ConfigError) as error:
        read_study(write_study(tmp_path, STUDY.replace(old, new)))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys, message",
    [
        ("model.args: {foo: 1}", "variant original: model: qkformer_4_384 takes no argument 'foo'"),
        ("model.name: resnet19, model.T: null, model.neuron: null", "variant original: model: "),
        ("seed: 4294967295", "variant original: seed: must be in"),
    ],
)
def test_what_would_end_the_last_run_is_refused_before_the_first(
    tmp_path, monkeypatch, keys, message
):
    register(monkeypatch)
    file = write_study(tmp_path, STUDY.replace("model.ssa: original", keys))
    with pytest.raises(ConfigError) as error:
        run_study(read_study(file), tmp_path / "out", seeds=2)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        (["run", "FILE", "--output", "out", "--only", "fixd"], "did you mean 'fixed'?"),
        (["run", "FILE", "--output", "out", "--job", "3/3"], "expected I/N with I from 0 to N - 1"),
        (["run", "FILE", "--output", "out", "--seeds", "0"], "expected a number from 1, got 0"),
        (["run", "FILE"], "--output"),
        (["table", "nowhere"], "nowhere: no folder of a study"),
    ],
)
def test_what_is_wrong_with_a_command_ends_it(tmp_path, monkeypatch, capsys, line, message):
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    file = write_study(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([str(file) if part == "FILE" else part for part in line])
    assert end.value.code == doors.WRONG
    assert message in capsys.readouterr().err


def test_processes_that_cannot_meet_again_are_refused(tmp_path, monkeypatch):
    register(monkeypatch)
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost",
             "MASTER_PORT": "1"}  # fmt: skip
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="need torchrun"):
        run_study(read_study(write_study(tmp_path)), tmp_path / "out")


@pytest.mark.slow
def test_speeds_of_the_variants_are_in_the_table(finished, tmp_path, capsys):
    file, output = finished
    benchmarks.study.main([str(file), "--output", str(output), "--repeats", "1", "--device", "cpu"])
    fixed, original = read_csv(output / "speed.csv")
    for row in (fixed, original):
        for name in ("training", "inference"):
            assert row[f"{name} images/s"] == pytest.approx(
                row[f"{name} ratio"] * fixed[f"{name} images/s"]
            )
    capsys.readouterr()
    main(["table", str(output), "--output", str(tmp_path)])
    assert f"{fixed['training images/s']:.0f} [" in capsys.readouterr().out
