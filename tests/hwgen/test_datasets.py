# SPDX-License-Identifier: Apache-2.0
"""Tests: the bundled frames and the loaders."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from hwgen.datasets import (
    Dataset,
    FrameConfig,
    digits_in_photographs,
    load_cifar10,
    load_folder,
    load_npz,
)
from hwgen.datasets import frames as frames_module

SMALL = FrameConfig(train=120, validation=40, test=60, seed=7)


@pytest.fixture(scope="module")
def splits():
    return digits_in_photographs(SMALL)


def test_frames_have_the_shapes_and_ranges_promised(splits):
    for part, count in ((splits.train, 120), (splits.validation, 40), (splits.test, 60)):
        assert part.images.shape == (count, 64, 64, 3) and part.images.dtype == np.uint8
        assert part.boxes is not None and part.boxes.shape == (count, 4)
        assert (part.boxes[:, 2:] > part.boxes[:, :2]).all()
        sides = (part.boxes[:, 3] - part.boxes[:, 1]) * 64
        assert sides.max() <= 44 and sides.min() >= 8
    assert set(splits.train.labels) == set(range(10))


def test_frames_are_the_same_for_the_same_seed_and_others_for_another(splits):
    again = digits_in_photographs(SMALL)
    assert np.array_equal(again.train.images, splits.train.images)
    assert np.array_equal(again.test.boxes, splits.test.boxes)
    other = digits_in_photographs(FrameConfig(train=120, validation=40, test=60, seed=8))
    assert not np.array_equal(other.train.images, splits.train.images)


def test_no_digit_and_no_tile_is_in_two_splits():
    _, labels, digit_split = frames_module._digits()
    tiles, tile_split = frames_module._tiles()
    for split in (digit_split, tile_split):
        # One name each: disjoint by construction, and none without a split.
        assert set(split) == {"train", "validation", "test"}
    for name in ("train", "validation", "test"):
        assert set(labels[digit_split == name]) == set(range(10))
    assert len(tiles) == 60 and tiles.shape[1:] == (85, 106, 3)


def test_the_box_is_round_the_ink():
    ink = frames_module._render_ink(
        np.ones((1, 8, 8), np.float32),
        np.array([[32.0, 20.0]]),
        np.array([16.0]),
        np.array([0.0]),
        64,
    )[0]
    solid = np.argwhere(ink > 0.5)
    assert np.array_equal(solid.min(axis=0), [24, 12])
    assert np.array_equal(solid.max(axis=0), [39, 27])


def test_frame_config_refuses_digits_larger_than_the_frame():
    with pytest.raises(ValueError, match="digit_side must lie in 8..64"):
        FrameConfig(digit_side=(20, 80))


def test_dataset_refuses_what_disagrees():
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1])
    with pytest.raises(ValueError, match="images must be uint8"):
        Dataset(images.astype(np.float32), labels)
    with pytest.raises(ValueError, match=r"labels must have the shape \(2,\)"):
        Dataset(images, np.array([0]))
    with pytest.raises(ValueError, match="labels must be whole numbers, not float64 such as .*0.5"):
        Dataset(images, np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="boxes must be finite and in"):
        Dataset(images, labels, np.array([[0, 0, 30, 30], [0, 0, 1, 1]], np.float32))
    with pytest.raises(ValueError, match="labels must be in 0..0"):
        Dataset(images, labels, class_names=("one",))


def test_split_is_disjoint_and_even_over_the_classes():
    labels = np.repeat(np.arange(4), 10)
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    first, second = Dataset(images, labels).split(0.3, seed=1)
    assert np.array_equal(np.bincount(second.labels), [3, 3, 3, 3])
    ids = np.concatenate([first.images[:, 0, 0, 0], second.images[:, 0, 0, 0]])
    assert np.array_equal(np.sort(ids), np.arange(40))


def test_load_folder_reads_classes_and_boxes(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 16, 3)).astype(np.uint8)
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture).save(tmp_path / name / "a.png")
        (tmp_path / name / "notes.txt").write_text("no picture")
    data = load_folder(tmp_path, 8)
    assert data.class_names == ("ant", "cat") and data.boxes is None
    assert data.images.shape == (2, 8, 8, 3)
    (tmp_path / "boxes.csv").write_text("ant/a.png,0,0,8,4\ncat/a.png,4,2,16,8\n")
    boxes = load_folder(tmp_path, 8).boxes
    assert np.array_equal(boxes, np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]], np.float32))
    (tmp_path / "boxes.csv").write_text("ant/a.png,0,0,8,4\n")
    with pytest.raises(ValueError, match="row for every picture, not miss cat/a.png"):
        load_folder(tmp_path, 8)
    (tmp_path / "boxes.csv").write_text("ant/a.png,0,0,8\n")
    with pytest.raises(ValueError, match="boxes.csv:1 must be"):
        load_folder(tmp_path, 8)


def test_load_folder_refuses_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        load_folder(tmp_path, 8)


def test_load_npz_reads_splits_and_names_missing_keys(tmp_path):
    path = tmp_path / "data.npz"
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(path, train_images=images, train_labels=np.array([0, 1, 1]), class_names=["a", "b"])
    data = load_npz(path, "train")
    assert data.images.shape == (3, 4, 4, 3) and data.class_names == ("a", "b")
    with pytest.raises(ValueError, match="must have the key 'images'"):
        load_npz(path)


def test_load_cifar10_reads_batches_and_refuses_code(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    batch = {b"data": pixels.reshape(2, -1), b"labels": [3, 9]}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    names = [bytes([97 + i]) for i in range(10)]
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    train, test = load_cifar10(tmp_path)
    assert len(train) == 10 and np.array_equal(test.labels, [3, 9])
    assert np.array_equal(test.images, pixels.transpose(0, 2, 3, 1))
    assert test.class_names[3] == "d"
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(ValueError, match="must hold arrays, not builtins.print"):
        load_cifar10(tmp_path)
    (tmp_path / "test_batch").unlink()
    with pytest.raises(ValueError, match="must hold the file test_batch"):
        load_cifar10(tmp_path)
