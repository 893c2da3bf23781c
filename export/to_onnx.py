"""A ClickModel as onnxruntime runs it: model.onnx scores whole sequences, step.onnx one new row per user,
burst.onnx several; the last two need windowed-bucket attention.

In: a ClickModel. Out: ONNX files with dynamic batch, and length (a multiple of W) where there is one.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.step import Step, state_of
from export.whole import Recurrence, WholeSequence
from model.networks import RECURRENT
from model.reformer import ClickModel

ROW = ("type", "item", "category", "features")
INPUTS = (*ROW, "lengths")
OUTPUTS = ("reach", "next_type")
WHOLE_OUTPUTS = (*OUTPUTS, "rings", "counts")  # the last two: the state after the last row
STEP_INPUTS = (*ROW, "slot", "pool", "counts")
BURST_INPUTS = (*STEP_INPUTS, "previous")
STEP_OUTPUTS = (*OUTPUTS, "key", "value", "ring")
OPSET = 18


def export_onnx(model: ClickModel, path: Path) -> None:
    """Write the whole-sequence graph of a model."""
    window = model.config.window
    lengths = torch.tensor([4 * window, 5, window])
    ids = torch.ones(3, 4 * window, dtype=torch.long)
    features = torch.zeros(3, 4 * window, model.config.features, dtype=torch.uint8)
    recurrent = model.config.network in RECURRENT
    graph, outputs = (Recurrence(model), OUTPUTS) if recurrent else (WholeSequence(model), WHOLE_OUTPUTS)
    axes = {name: {0: "batch"} for name in (*INPUTS, *outputs)}
    axes |= {name: {0: "batch", 1: "length"} for name in (*ROW, *OUTPUTS)}
    write(graph, (ids, ids, ids, features, lengths), path, INPUTS, outputs, axes)


def export_step(model: ClickModel, path: Path, burst: bool = False) -> None:
    """Write the step graph of a model, or that of bursts."""
    state, users = state_of(model.config), 3
    ids, slots = torch.ones(users, dtype=torch.long), torch.arange(users)
    features = torch.zeros(users, model.config.features, dtype=torch.uint8)
    pool = torch.zeros(users * state.rings * 2, state.window, state.dim_head)
    counts = torch.zeros(users * state.rings, dtype=torch.int32)
    axes = {name: {0: "batch"} for name in (*ROW, "slot", *STEP_OUTPUTS)}
    axes |= {"pool": {0: "blocks"}, "counts": {0: "rings"}}
    example: tuple[torch.Tensor, ...] = (ids, ids, ids, features, slots, pool, counts)
    if burst:
        axes["previous"] = {0: "batch", 1: "rows"}
        example = (*example, torch.tensor([[-1, -1], [0, -1], [0, 1]]))
    write(Step(model), example, path, BURST_INPUTS if burst else STEP_INPUTS, STEP_OUTPUTS, axes)


def write(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    axes: dict[str, Any],
) -> None:
    """Trace a module and write it."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # the exporter that keeps the batch dynamic
        warnings.filterwarnings("ignore", "Exporting aten::index")  # negative indices would be lost; there are none
        warnings.filterwarnings("ignore", "Converting a tensor to a Python", module=r"torch\.nn\.modules\.rnn")
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size")  # no state is given: any fits
        torch.onnx.export(
            graph.eval(), example, str(path), dynamo=False, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), dynamic_axes=axes,
        )  # fmt: skip
