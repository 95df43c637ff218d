# SPDX-License-Identifier: Apache-2.0
"""Room tests: the graph is immutable, rewritable, printable, and verified at each level."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hwgen.ir import (
    Add,
    Clamp,
    Conv2d,
    Flatten,
    Graph,
    Input,
    IRError,
    Linear,
    MaxPool,
    Node,
    QConv,
    QInput,
    QMaxPool,
    QuantParams,
    Requantization,
    Source,
    TensorType,
    evaluate,
    evaluate_integer,
    quantize_input,
    verify,
)

X = TensorType((2, 4, 4))
INPUT = Input(name="x", type=X)


def conv(name: str = "c", *inputs: str, **options: object) -> Conv2d:
    fields = {
        "weight": np.ones((2, 2, 1, 1), np.float32),
        "bias": np.zeros(2, np.float32),
        "type": X,
        **options,
    }
    return Conv2d(name=name, inputs=inputs or ("x",), **fields)  # type: ignore[arg-type]


def graph(*nodes: Node, **options: object) -> Graph:
    return Graph((INPUT, *nodes), ("x",), (nodes[-1].name,), **options)  # type: ignore[arg-type]


def test_nodes_cannot_be_changed() -> None:
    weight = np.ones((2, 2, 1, 1), np.float32)
    node = conv(weight=weight)
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.name = "d"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        node.weight[0] = 2
    weight[:] = 7
    assert (node.weight == 1).all()


def test_rewrite_replaces_inserts_and_removes() -> None:
    first = graph(conv("c"), conv("d", "c"), Add(name="s", inputs=("d", "c"), type=X))
    clamp = Clamp(name="r", inputs=("c",), type=X, lo=0, hi=6)
    inserted = verify(first.rewrite({"c": (first["c"], clamp)}))
    assert [node.name for node in inserted.nodes] == ["x", "c", "r", "d", "s"]
    assert inserted["d"].inputs == ("r",) and inserted["s"].inputs == ("d", "r")
    removed = verify(inserted.rewrite({"r": "c", "d": "c"}))
    assert removed["s"].inputs == ("c", "c")
    assert [node.name for node in removed.nodes] == ["x", "c", "s"]
    assert verify(removed.rewrite({"s": "c"})).outputs == ("c",)
    assert [node.name for node in first.nodes] == ["x", "c", "d", "s"]
    assert [n.name for n in first.consumers("c")] == ["d", "s"]
    assert first.sole_consumer("d") is first["s"] and first.sole_consumer("c") is None
    with pytest.raises(KeyError, match="no node 'q'; it has x, c"):
        first["q"]


def test_rewrite_refuses_cycles_and_holes() -> None:
    first = graph(conv("c"), conv("d", "c"))
    with pytest.raises(IRError, match="the nodes 'c', 'd' read each other in a cycle"):
        first.rewrite({"c": conv("c", "d")})
    with pytest.raises(IRError, match="'gone' is read but does not exist"):
        first.rewrite({"c": conv("c", "gone")})


def test_printer() -> None:
    text = graph(conv(source=Source("layer1", "net.py:3: y"))).pretty()
    assert text.splitlines()[0] == "graph (float) x -> c"
    assert "c = Conv2d(x) weight=float32[2, 2, 1, 1]" in text
    assert ": float32[2,4,4]  # layer1 at net.py:3: y" in text


BROKEN = {
    "level": (lambda: graph(conv(), level="no"), "level must be one of float, fused, quantized"),
    "kind": (
        lambda: graph(Clamp(name="r", inputs=("x",), type=X, lo=0, hi=1), level="fused"),
        "Clamp 'r' may not be in a fused graph, only Input, Conv2d, MaxPool, AvgPool, Add may",
    ),
    "twice": (lambda: graph(conv("x")), "bears a name that is taken"),
    "order": (lambda: graph(conv("c", "d"), conv("d")), "reads 'd', which does not come before"),
    "shape": (
        lambda: graph(conv(type=TensorType((2, 3, 3)))),
        r"declares the shape \(2, 3, 3\), but computes \(2, 4, 4\)",
    ),
    "channels": (
        lambda: graph(conv(weight=np.ones((2, 3, 1, 1)))),
        "Conv2d 'c': the weights want 3 input channels, not 2",
    ),
    "window": (
        lambda: graph(conv(weight=np.ones((2, 2, 5, 1)))),
        "the kernel spans 5 positions along y but the padded input has only 4",
    ),
    "residual": (
        lambda: graph(conv("c"), conv("d", "c", "x")),
        "Conv2d 'd': must read 1 nodes, not 2",
    ),
    "clamp": (lambda: graph(conv(clamp=(0.0, 1.0))), "a clamp may not be fused at the float level"),
    "falling clamp": (lambda: graph(conv(clamp=(1.0, 0.0)), level="fused"), "clamp must rise"),
    "nan": (lambda: graph(conv(bias=np.array([0, np.nan]))), "bias must be finite"),
    "code": (
        lambda: graph(conv(type=TensorType((2, 4, 4), "int8"))),
        "the result must be float32 without a code",
    ),
    "linear": (
        lambda: graph(
            Linear(name="l", inputs=("x",), type=X, weight=np.ones((2, 3)), bias=np.ones(2))
        ),
        r"wants 3 features, not \(2, 4, 4\)",
    ),
    "add": (
        lambda: graph(
            Flatten(name="f", inputs=("x",), type=TensorType((32, 1, 1))),
            Add(name="s", inputs=("x", "f"), type=X),
        ),
        "both must have one shape",
    ),
    "output": (lambda: Graph((INPUT,), ("x",), ("y",)), "input or output 'y' does not exist"),
    "no output": (lambda: Graph((INPUT,), ("x",), ()), "must have an output"),
    "inputs": (lambda: Graph((INPUT,), (), ("x",)), r"inputs must be \['x'\], not \[\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_verifier(name: str) -> None:
    make, text = BROKEN[name]
    with pytest.raises(IRError, match=text):
        verify(make())


CODE = QuantParams(0.5, 3)
Q = TensorType((2, 4, 4), "int8", CODE)
IDENTITY = Requantization(multiplier=np.ones(2, int), shift=np.zeros(2, int))


def qconv(**options: object) -> Graph:
    scale = {"multiplier": np.full(2, 40000), "shift": np.full(2, 20), "zero_point": 3}
    for name in list(options):
        if name in {f.name for f in dataclasses.fields(Requantization)}:
            scale[name] = options.pop(name)
    fields = {
        "weight": np.ones((2, 1, 1, 2), np.int8),
        "bias": np.full(2, -6),
        "weight_scale": np.ones(2),
        "requantization": Requantization(**scale),  # type: ignore[arg-type]
        "type": Q,
        **options,
    }
    node = QConv(name="c", inputs=("x",), **fields)  # type: ignore[arg-type]
    return Graph((QInput(name="x", type=Q), node), ("x",), ("c",), "quantized")


def qpool(**options: object) -> Graph:
    fields = {"type": Q, "requantization": IDENTITY, **options}
    node = QMaxPool(name="p", inputs=("x",), kernel=(1, 1), stride=(1, 1), **fields)  # type: ignore[arg-type]
    return Graph((QInput(name="x", type=Q), node), ("x",), ("p",), "quantized")


BROKEN_INTEGERS = {
    "multiplier": (lambda: qconv(multiplier=np.full(2, 65536)), "multiplier must be in 0..65535"),
    "shift": (lambda: qconv(shift=np.full(2, 48)), "shift must be in 0..47, not 48..48"),
    "one channel": (lambda: qconv(shift=np.ones(1)), r"shift must have the shape \(2,\)"),
    "clamp": (lambda: qconv(lo=5, hi=4), "lo and hi must rise"),
    "zero point": (lambda: qconv(zero_point=4), "requantizes to zero point 4"),
    "residual": (lambda: qconv(residual_multiplier=np.ones(2)), "exactly with a residual"),
    "minus 128": (lambda: qconv(weight=np.full((2, 1, 1, 2), -128)), "not -128"),
    "overflow": (lambda: qconv(bias=np.full(2, 2**31 - 1)), r"must stay below 2\*\*31, but can"),
    "float": (lambda: qconv(type=X), "must be int8 with a code"),
    "pool code": (
        lambda: qpool(type=TensorType((2, 4, 4), "int8", QuantParams(0.5, 4))),
        "a max pool must keep the code of its input",
    ),
    "pool scale": (
        lambda: qpool(requantization=Requantization(multiplier=np.ones(2), shift=np.ones(2))),
        "requantization must be the identity",
    ),
}


@pytest.mark.parametrize("name", BROKEN_INTEGERS)
def test_quantized_verifier(name: str) -> None:
    make, text = BROKEN_INTEGERS[name]
    verify(qconv())
    verify(qpool())
    with pytest.raises(IRError, match=text):
        verify(make())


def test_integer_evaluation_by_hand() -> None:
    one = qconv(multiplier=np.array([1, 3]), shift=np.array([1, 1]))
    codes = np.full((3, 4, 4, 2), 5, np.int8)
    # acc = 5 + 5 - 6 = 4; (4 * 1 + 1) >> 1 = 2 and (4 * 3 + 1) >> 1 = 6, both plus 3
    found = evaluate_integer(one, codes, batch=2, keep_all=True)
    assert np.array_equal(found["x"], codes)
    assert np.array_equal(found["c"], np.broadcast_to([5, 9], (3, 4, 4, 2)))
    assert set(evaluate_integer(one, codes)) == {"c"}


def test_evaluation_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match=r"x must be int8 .* \(N, 4, 4, 2\), not float32"):
        evaluate_integer(qconv(), np.zeros((1, 4, 4, 2), np.float32))
    with pytest.raises(ValueError, match=r"x must be float32 .* \(N, 2, 4, 4\)"):
        evaluate(graph(conv()), np.zeros((1, 2, 4, 5), np.float32))
    with pytest.raises(IRError, match="use evaluate_integer"):
        evaluate(qconv(), np.zeros((1, 2, 4, 4), np.float32))
    with pytest.raises(IRError, match="a float graph computes floats; quantize it first"):
        evaluate_integer(graph(conv()), np.zeros((1, 4, 4, 2), np.int8))
    with pytest.raises(IRError, match="has no code for its input"):
        quantize_input(graph(conv()), np.zeros((1, 2, 4, 4), np.float32))


def test_quant_params() -> None:
    assert QuantParams(0.125).scale_log2 == -3
    with pytest.raises(IRError, match=r"scale must be a power of two, not 0\.3"):
        _ = QuantParams(0.3).scale_log2
    with pytest.raises(IRError, match="scale must be finite and positive, not 0"):
        QuantParams(0.0)
    with pytest.raises(IRError, match="zero_point must be in -128..127, not 128"):
        QuantParams(1.0, 128)


def test_max_pool_padding_never_wins() -> None:
    pool = MaxPool(
        name="p",
        inputs=("x",),
        type=TensorType((2, 2, 2)),
        kernel=(3, 3),
        stride=(2, 2),
        padding=((1, 0), (1, 0)),
    )
    x = -np.arange(1, 33, dtype=np.float32).reshape(1, 2, 4, 4)
    found = evaluate(verify(graph(pool)), x)["p"]
    assert np.array_equal(found[0, 0], [[-1, -2], [-5, -6]])
