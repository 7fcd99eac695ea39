"""Names of classes are those of the class indices that the data sets give."""

from pathlib import Path

import pytest
from data.event_roots import empty_frames, load

from qkformer.data.inputs import Inputs, inputs_of, known_inputs
from qkformer.data.source import DataConfig, DataError

# gesture_mapping.csv of the data set, whose labels are one more than the folders' names
GESTURES = {"0": "hand clapping", "2": "left hand wave", "7": "arm roll", "10": "other gestures"}


def test_gestures_are_named_by_class_index_not_by_folder(tmp_path):
    folders = {f"{part}/{i}": ["user01_led_0"] for part in ("train", "test") for i in range(11)}
    data = load("dvs128-gesture", empty_frames(tmp_path, folders))
    names = inputs_of(data).class_names
    assert names == known_inputs("dvs128-gesture").class_names and len(set(names)) == 11
    of_folder = {Path(path).parent.name: names[label] for path, label in data.test.samples}
    assert {folder: of_folder[folder] for folder in GESTURES} == GESTURES


def test_what_the_configuration_normalises_by_goes_before_the_data_sets_own():
    config = DataConfig("cifar10", 32, 4, mean=(0.0, 0.5, 1.0))
    inputs = known_inputs("cifar10").normalised_as(config)
    assert (inputs.mean, inputs.std) == (config.mean, known_inputs("cifar10").std)
    with pytest.raises(DataError, match=r"data\.mean: is of 3 channels, cifar10 has 1"):
        Inputs(("a",), (0.5,), (0.5,)).normalised_as(config)
