"""Labels that VTAB derives, on constructed annotations."""

import numpy as np

from peftjax.data import vtab_labels


def test_labels_of_dsprites_fill_16_bins():
    for attribute, values in [("label_x_position", 32), ("label_orientation", 40)]:
        label = vtab_labels.binned(attribute, values)
        found = [label({attribute: np.int64(value)}) for value in range(values)]
        expected = np.floor(np.arange(values) / (values / 16)).astype(int)
        assert found == expected.tolist()
        assert set(found) == set(range(16))


def test_labels_of_clevr():
    for count in range(3, 11):
        row = {"objects": {"size": np.zeros(count, np.int64)}}
        assert vtab_labels.clevr_count(row) == count - 3
    depths = {7.99: 0, 8.0: 0, 8.01: 1, 8.5: 1, 8.7: 2, 9.2: 3, 9.5: 3, 9.9: 4, 10.5: 5}
    for depth, expected in depths.items():
        coordinates = np.array([[1, 2, depth + 3], [5, 6, depth]], np.float32)
        row = {"objects": {"pixel_coords": coordinates}}
        assert vtab_labels.clevr_distance(row) == expected, depth


def test_labels_of_kitti():
    def label(*objects):
        types, depths = zip(*objects, strict=True) if objects else ((), ())
        location = np.array([[0, 0, z] for z in depths], np.float32).reshape(-1, 3)
        found = {"type": np.array(types, np.int64), "location": location}
        return vtab_labels.kitti_distance({"objects": found})

    assert label() == 3
    assert label((3, 2.0), (4, 5.0)) == 3  # pedestrians only
    assert label((0, 5.0), (1, 30.0)) == 0
    assert label((2, 8.0)) == 0 and label((2, 8.1)) == 1
    assert label((1, 20.0), (5, 1.0)) == 1 and label((1, 20.5)) == 2
    assert label((0, -3.0)) == 0
