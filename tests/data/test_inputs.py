"""Names of classes are those of the class indices that the data sets give."""

from pathlib import Path

from data.event_roots import empty_frames, load

from qkformer.data.inputs import inputs_of, known_inputs

# gesture_mapping.csv of the data set, whose labels are one more than the folders' names
GESTURES = {"0": "hand clapping", "2": "left hand wave", "7": "arm roll", "10": "other gestures"}


def test_gestures_are_named_by_class_index_not_by_folder(tmp_path):
    folders = {f"{part}/{i}": ["user01_led_0"] for part in ("train", "test") for i in range(11)}
    data = load("dvs128-gesture", empty_frames(tmp_path, folders))
    names = inputs_of(data).class_names
    assert names == known_inputs("dvs128-gesture").class_names and len(set(names)) == 11
    of_folder = {Path(path).parent.name: names[label] for path, label in data.test.samples}
    assert {folder: of_folder[folder] for folder in GESTURES} == GESTURES
