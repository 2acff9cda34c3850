"""A PyTorch module as a servable program: written as ONNX by PyTorch's TorchScript exporter.

That exporter needs no package but PyTorch. Its successor (`torch.onnx.export(dynamo=True)`) needs onnxscript.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import numpy as np
import torch

from quorate.errors import PlanError
from quorate.parameters import Layout
from quorate.task import OnnxGraph, Tensor

__all__ = ["graph"]

_OPSET = 17


def graph(module: Any, layout: Layout, example: np.ndarray | None, name: str, activation: str) -> OnnxGraph:
    """The module in evaluation mode.

    Args:
        module: it is not changed.
        layout: of the parameters that a version brings along; all others become part of the graph.
        example: one example's features, float32 or int64; None: what the first layer takes, if it is linear.
        name: of the task.
        activation: what makes predictions of the module's outputs.

    Raises:
        PlanError: PyTorch can't write the module as ONNX, or one example's features are not known.
    """
    if example is None:
        first = next((m for m in module.modules() if not list(m.children())), None)
        if not isinstance(first, torch.nn.Linear):
            raise PlanError(
                f"task: what one example of {name!r} looks like is not known, so that its program can't be written; "
                "accepted: example=, the features of one"
            )
        example = np.zeros(first.in_features, np.float32)
    served = copy.deepcopy(module).cpu().eval()
    values = {**dict(served.named_parameters()), **dict(served.named_buffers())}
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layout.names:  # equal ones would be written once
            values[parameter].uniform_(0.5, 1.5, generator=draw)
    given = torch.from_numpy(np.stack([example, example]))
    batch = {0: "batch"}
    written: Any = io.BytesIO()  # which is accepted, though its type is not
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's age
            shape = tuple(served(given).shape[1:])
            torch.onnx.export(
                served,
                (given,),
                written,
                dynamo=False,
                opset_version=_OPSET,
                do_constant_folding=False,
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_axes={"inputs": batch, "outputs": batch},
            )
    except Exception as error:  # the exporter's errors have no common base
        raise PlanError(f"task: PyTorch can't write {name!r} as ONNX: {error}") from error
    return OnnxGraph(
        model=written.getvalue(),
        inputs=(Tensor("inputs", str(example.dtype), (-1, *example.shape)),),
        output=Tensor("outputs", "float32", (-1, *shape)),
        activation=activation,
    )
