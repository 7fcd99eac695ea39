"""Logs in every published form, made up, with what interrupts real ones."""

import json

import pytest

from qkformer.analysis import logs
from qkformer.data.source import DataError


def row(epoch, train, loss, acc1, acc5):
    values = dict(train_loss=train, test_loss=loss, test_acc1=acc1, test_acc5=acc5)
    return {"epoch": epoch} | {key: value for key, value in values.items() if value is not None}


def json_lines(*rows):
    return "".join(json.dumps({**each, "train_lr": 1e-3, "n_parameters": 5}) + "\n"
                   for each in rows)  # fmt: skip


TIMM = """\
Train: 0 [   0/100 (  0%)]  Loss:  2.303418 (2.3034)  Time: 1.2s  LR: 1.0e-05  Data: 0.6
INFO:train:Train: 0 [   0/100 (  0%)]  Loss:  2.303418 (2.3034)  Time: 1.2s  LR: 1.0e-05
Train: 0 [ 100/100 (100%)]  Loss:  2.103418 (2.2034)  Time: 0.2s  LR: 1.0e-05  Data: 0.0
Test: [   0/78]  Time: 0.9 (0.9)  Loss:  1.9 (1.9)  Acc@1: 31.2 (31.2)  Acc@5: 80.1 (80.1)
Test: [  78/78]  Time: 0.2 (0.3)  Loss:  1.7 (1.80)  Acc@1: 43.7 (35.61)  Acc@5: 93.7 (87.20)
INFO:train:Test: [  78/78]  Time: 0.2  Loss:  1.7 (1.80)  Acc@1: 43.7 (35.61)  Acc@5: 93.7 (87.20)
Train: 1 [ 100/100 (100%)]  Loss:  1.903418 (1.9034)  Time: 0.2s  LR: 1.0e-05  Data: 0.0
Test: [  78/78]  Time: 0.2 (0.3)  Loss:  1.5 (1.60)  Acc@1: 50.0 (45.5)  Acc@5: 93.7 (91.0)
*** Best metric: 45.5 (epoch 1)
Train: 2 [  50/100 ( 50%)]  Loss:  1.803418 (1.8034)  Time: 0.2s  LR: 1.0e-05  Data: 0.0
"""
IMAGENET = """\
Averaged stats: lr: 0.000020  loss: 6.8021 (6.9032)
[12:01:11.101]  * Acc@1 3.828 Acc@5 12.688 loss 5.593
Averaged stats: lr: 0.000040  loss: 6.5021 (6.6032)
[13:01:11.101]  * Acc@1 9.5 Acc@5 22.0 loss 4.9
"""
DVS = """\
Epoch: [0]  [0/562]  eta: 0:10:00  lr: 0.001  loss: 2.4 (2.4)  acc1: 6.2 (6.2)  time: 1.1
Epoch: [0]  [561/562]  eta: 0:00:00  lr: 0.001  loss: 2.2 (2.3)  acc1: 12.5 (14.1)  time: 0.4
 * Acc@1 = 22.4, Acc@5 = 76.2, loss = 2.20
Epoch: [1]  [561/562]  eta: 0:00:00  lr: 0.001  loss: 2.0 (2.1)  acc1: 32.5 (24.1)  time: 0.4
 * Acc@1 = 30.0, Acc@5 = 80.0, loss = 1.9
"""
CASES = {
    "log.txt": (
        json_lines(row(201, 3.0, 1.1, 80.0, 95.0), row(202, 2.9, 1.0, 81.0, 96.0),
                   row(201, 2.8, 0.9, 82.0, 97.0)),
        [row(201, 2.8, 0.9, 82.0, 97.0), row(202, 2.9, 1.0, 81.0, 96.0)],
    ),
    "summary.csv": (
        "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2.2,1.8,35.6,87.2,1e-5\n"
        "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n1,1.9,,45.5,91.0,1e-5\n",
        [row(0, 2.2, 1.8, 35.6, 87.2), row(1, 1.9, None, 45.5, 91.0)],
    ),
    "cifar.out": (TIMM, [row(0, 2.2034, 1.8, 35.61, 87.2), row(1, 1.9034, 1.6, 45.5, 91.0)]),
    "imagenet.out": (IMAGENET, [row(0, 6.9032, 5.593, 3.828, 12.688),
                                row(1, 6.6032, 4.9, 9.5, 22.0)]),
    "dvs.out": (DVS, [row(0, 2.3, 2.2, 22.4, 76.2), row(1, 2.1, 1.9, 30.0, 80.0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_published_form_gives_the_same_rows(name, tmp_path):
    text, expected = CASES[name]
    (tmp_path / name).write_text(text)
    assert logs.read(tmp_path / name) == expected


def test_a_run_is_its_folder(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json_lines(row(0, 2.0, 1.0, 50.0, 90.0)))
    assert logs.read(tmp_path) == [row(0, 2.0, 1.0, 50.0, 90.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no epoch in it"),
        (b"nothing of interest\n", "there is no epoch in it"),
        (b'{"epoch": 1}\n{"epo', "line 2 has no epoch and its numbers"),
        (b'{"epoch": 1}\n{"epoch": 2, "seconds": 3}\n', "there is no epoch in it"),
        (b"epoch,eval_top1\n0,50.0\n1,none\n", "line 3 has no epoch and its numbers"),
        (b"[1]\n", "there is no epoch in it"),
        (b"\xff\xfe\x00\x80", "cannot be read as a log"),
        (None, "cannot be read as a log"),
    ],
)
def test_an_unreadable_log_gets_one_line(content, message, tmp_path):
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        logs.read(path)
    assert "\n" not in str(error.value)
