# SPDX-License-Identifier: Apache-2.0
"""Room tests: ONNX files become the same float graphs as the torch networks behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen.frontend import UnsupportedOperation, from_onnx
from hwgen.ir import evaluate, verify
from hwgen.passes.pipeline import to_fused


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: tuple[object, ...] = (1, 3, 8, 8),
    rank: int = 2,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def reference(path: Path, x: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(onnx.load(path))
    return np.concatenate([session.run(None, {"x": image[None]})[0] for image in x])


def check(path: Path, rng: np.random.Generator) -> None:
    graph = verify(from_onnx(path))
    shape = graph["x"].type.shape
    x = rng.standard_normal((3, *shape)).astype(np.float32)
    wanted = reference(path, x)
    for level in (graph, to_fused(graph)):
        found = evaluate(level, x)[level.outputs[0]].reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_residual_network(tmp_path: Path, rng: np.random.Generator) -> None:
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        make("BatchNormalization", ["c1", "g", "b", "m", "v"], ["n1"], epsilon=1e-3),
        make("Relu", ["n1"], ["r1"]),
        make("Conv", ["r1", "w2", "b2"], ["c2"], auto_pad="SAME_UPPER", group=2),
        make("Add", ["r1", "c2"], ["a"]),
        make("Clip", ["a", "zero", "six"], ["r2"]),
        make("MaxPool", ["r2"], ["p"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        make("Dropout", ["p"], ["d"]),
        make("GlobalAveragePool", ["d"], ["ga"]),
        make("Flatten", ["ga"], ["f"]),
        make("Gemm", ["f", "w3", "b3"], ["y"], transB=1, alpha=0.5, beta=2.0),
    ]
    constants = {
        "w1": normal(rng, 6, 3, 3, 3),
        "g": normal(rng, 6),
        "b": normal(rng, 6),
        "m": normal(rng, 6),
        "v": rng.uniform(0.5, 2, 6).astype(np.float32),
        "w2": normal(rng, 6, 3, 4, 2),
        "b2": normal(rng, 6),
        "zero": np.float32(0),
        "six": np.float32(6),
        "w3": normal(rng, 5, 6),
        "b3": normal(rng, 5),
    }
    check(save(tmp_path / "net.onnx", nodes, constants, ("batch", 3, 8, 8)), rng)


def test_matmul_add_reshape(tmp_path: Path, rng: np.random.Generator) -> None:
    make = helper.make_node
    nodes = [
        make("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        make("Constant", [], ["s"], value=numpy_helper.from_array(np.array([1, -1]))),
        make("Reshape", ["p", "s"], ["f"]),
        make("MatMul", ["f", "w"], ["z"]),
        make("Add", ["b", "z"], ["i"]),
        make("Identity", ["i"], ["y"]),
    ]
    constants = {"w": normal(rng, 12, 5), "b": normal(rng, 5)}
    check(save(tmp_path / "net.onnx", nodes, constants), rng)


def test_mean_and_channel_bias(tmp_path: Path, rng: np.random.Generator) -> None:
    make = helper.make_node
    nodes = [
        make("Add", ["x", "b"], ["z"]),
        make("ReduceMean", ["z"], ["y"], axes=[2, 3], keepdims=0),
    ]
    check(save(tmp_path / "net.onnx", nodes, {"b": normal(rng, 3, 1, 1)}), rng)


def test_every_refusal_is_listed(tmp_path: Path, rng: np.random.Generator) -> None:
    make = helper.make_node
    nodes = [
        make("Sigmoid", ["x"], ["s"], name="gate"),
        make("LeakyRelu", ["s"], ["l"], name="leak"),
        make("GlobalAveragePool", ["l"], ["g"]),
        make("Flatten", ["g"], ["f"]),
        make("Softmax", ["f"], ["y"], name="head"),
    ]
    with pytest.raises(UnsupportedOperation) as caught:
        from_onnx(save(tmp_path / "net.onnx", nodes, {}))
    found = [(item.operation, item.source.module) for item in caught.value.items]
    assert found == [("Sigmoid", "gate"), ("LeakyRelu", "leak"), ("Softmax", "head")]
    assert "argmax is unchanged" in str(caught.value)


def test_wrong_files(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.onnx must be a valid ONNX file"):
        from_onnx(tmp_path / "text.onnx")
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(ValueError, match=r"must be float32 \(1, C, H, W\) of fixed C, H and W"):
        from_onnx(save(tmp_path / "a.onnx", relu, {}, (1, 3, "h", 8), 4))
    weight = normal(rng, 4, 3, 1, 1)
    weight[0, 0] = np.nan
    conv = [helper.make_node("Conv", ["x", "w"], ["y"])]
    with pytest.raises(ValueError, match="w must be finite, but 1 of its 12 values"):
        from_onnx(save(tmp_path / "b.onnx", conv, {"w": weight}, rank=4))
