"""Names of classes are those of the class indices that the data sets give."""

from pathlib import Path

from data.event_roots import empty_frames, load

from qkformer.analysis.confusion import class_names

# gesture_mapping.csv of the data set, whose labels are one more than the folders' names
GESTURES = {"0": "hand clapping", "2": "left hand wave", "7": "arm roll", "10": "other gestures"}


def test_gestures_are_named_by_class_index_not_by_folder(tmp_path):
    folders = {f"{part}/{i}": ["user01_led_0"] for part in ("train", "test") for i in range(11)}
    data = load("dvs128-gesture", empty_frames(tmp_path, folders))
    names = class_names("dvs128-gesture", data.num_classes)
    assert len(set(names)) == 11
    of_folder = {Path(path).parent.name: names[label] for path, label in data.test.samples}
    assert {folder: of_folder[folder] for folder in GESTURES} == GESTURES


def test_data_of_other_class_counts_have_numbers_for_names():
    assert class_names("cifar10", 10)[3] == class_names("cifar10-dvs", 10)[3] == "cat"
    assert class_names("dvs128-gesture", 3) == class_names("digits", 3) == ["0", "1", "2"]
