"""A bundle with a small network of our own making, quick to write and to spoil; and inputs for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.contract.bundle import (
    CALIBRATION,
    CONTRACT,
    FILES,
    GOLDEN,
    MODEL,
    PROVENANCE,
    Bundle,
    Calibration,
    Contract,
    load_bundle,
    pad,
    to_json,
)
from model.contract.features import WIDTH
from model.contract.graph import OUTPUTS
from model.contract.rows import Inputs
from model.contract.stages import load_funnel
from worker.scorer import open_session

Array = npt.NDArray[Any]

BASE_RATES = [[0.1, 0.2, 0.3, 0.05, 0.02, 0.01], [0.9, 0.8, 0.7, 0.2, 0.1, 0.05]]
CLASSES = (32, 64, 128)
DIM = 48


def network() -> onnx.ModelProto:
    """Return a small causal network: embeddings, a running mean of the features, two layers, two heads."""
    rng = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype("f4"), name)

    def constant(name: str, value: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, "i8"), name)

    nodes = [
        helper.make_node("Gather", ["types", "type"], ["t"]),
        helper.make_node("Gather", ["items", "item"], ["i"]),
        helper.make_node("Gather", ["categories", "category"], ["c"]),
        helper.make_node("Cast", ["features"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "mix"], ["fm"]),
        helper.make_node("Sum", ["t", "i", "c", "fm"], ["x"]),
        helper.make_node("CumSum", ["x", "axis"], ["past"]),
        helper.make_node("Tanh", ["past"], ["h"]),
        helper.make_node("MatMul", ["h", "inner"], ["h2"]),
        helper.make_node("Softmax", ["h2"], ["h3"], axis=-1),
        helper.make_node("MatMul", ["h3", "to_reach"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["reach"]),
        helper.make_node("MatMul", ["h2", "to_next"], ["next_type"]),
    ]
    weights = [
        weight("types", 20, DIM),
        weight("items", 2048, DIM),
        weight("categories", 1024, DIM),
        numpy_helper.from_array(rng.normal(0, 0.002, (WIDTH, DIM)).astype("f4"), "mix"),
        weight("inner", DIM, DIM),
        weight("to_reach", DIM, 12),
        weight("to_next", DIM, 20),
        constant("axis", 1),
        constant("shape", [0, 0, 2, 6]),
    ]
    integers = [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "L"]) for n in ("type", "item", "category")]
    inputs = [
        *integers,
        helper.make_tensor_value_info("features", TensorProto.UINT8, ["B", "L", WIDTH]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
    ]
    outputs = [
        helper.make_tensor_value_info("reach", TensorProto.FLOAT, ["B", "L", 2, 6]),
        helper.make_tensor_value_info("next_type", TensorProto.FLOAT, ["B", "L", 20]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_inputs(lengths: Sequence[int], rows_each: int = 2, seed: int = 0) -> Inputs:
    """Return random users, the last rows of each one wanted, in an order that jumps between users."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    wanted = [(user, n - 1 - k) for k in range(rows_each) for user, n in enumerate(lengths) if n > k]
    return Inputs(
        lengths=np.array(lengths, "i4"),
        type=rng.integers(2, 20, total, "u1"),
        item=rng.integers(0, 2**32, total, "u4"),
        category=rng.integers(0, 2**32, total, "u4"),
        features=rng.integers(0, 256, (total, WIDTH), "u1"),
        owner=np.array([user for user, _ in wanted], "i4"),
        position=np.array([at for _, at in wanted], "i4"),
    )


def write_bundle(folder: Path, spoil: float = 0.0) -> Bundle:
    """Write a bundle whose golden answers are its own network's, plus `spoil`."""
    onnx.save(network(), folder / MODEL)
    contract = Contract(funnel=load_funnel(), window=32, base_rates=BASE_RATES, length_classes=CLASSES)
    calibration = Calibration(scale=[[1.1] * 6, [0.9] * 6], shift=[[-0.5] * 6, [0.1] * 6])
    (folder / CONTRACT).write_bytes(to_json(contract))
    (folder / CALIBRATION).write_bytes(to_json(calibration))
    unverified = Bundle(folder, contract, calibration, {})
    feed = pad(make_inputs([5, 32, 9], seed=9), [0, 1, 2], 32, contract.vocabulary)
    reach, next_type = open_session(unverified.model_path, 1).run(OUTPUTS, feed)
    np.savez(folder / GOLDEN, allow_pickle=False, **feed, reach=reach + np.float32(spoil), next_type=next_type)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / PROVENANCE).write_bytes(to_json({"name": "tiny", "version": "1", "files": files}))
    return load_bundle(folder)
