"""A servable program: what turns inputs and parameters into predictions, without the parameters.

A program is an ONNX model whose initialisers are external and have no data: about 500 bytes that stay the
same from version to version. `OnnxRuntime` gives it the parameters when it is loaded
(`SessionOptions.add_external_initializers`), so that neither a server nor a device needs the `onnx` package,
and a new version is ready in under a millisecond.

`dense_network` writes the program of regressions and of multilayer perceptrons. It has one output, so that a
TensorFlow Serving client sees `predictions` as it does for a Keras model: one row of probabilities (or
values) an example. With `classes=True` a classifier has two, and each prediction is an object with both names.
`from_graph` takes what a framework has written.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quorate.artifacts.manifest import TensorSpec
from quorate.errors import DataError, MissingExtra
from quorate.parameters import Layout, Parameters
from quorate.task import DenseLayer, OnnxGraph

__all__ = ["OnnxRuntime", "Program", "dense_network", "from_graph"]

# The oldest versions with what is written here, so that every onnxruntime we accept reads it.
_OPSET, _IR_VERSION = 17, 8

_ACTIVATIONS = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softmax": "Softmax",
    "identity": "Identity",
}


@dataclass(frozen=True)
class Program:
    """An ONNX model without its parameters.

    Args:
        template: the serialised model; its initialisers are external and are given by name when it is loaded.
        inputs: what it takes, in order; the first dimension of every shape is the batch, -1.
        outputs: what it gives, in order.
    """

    template: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class OnnxRuntime:
    """A program with its parameters, ready to predict: one ONNX Runtime session on one thread.

    Equal inputs in batches of equal size give bit-equal outputs on equal machines. It may be called from
    several threads.

    Args:
        program: the program.
        parameters: one array for each of the program's initialisers; they must not be changed afterwards.

    Raises:
        MissingExtra: onnxruntime is not installed.
        DataError: the program can't be loaded, or the parameters are not what it needs.
    """

    def __init__(self, program: Program, parameters: Parameters):
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnx", "predicting with a published model") from error
        self.program = program
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Values refer to the arrays, and the session to the values: all of them live as long as the session.
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in parameters.values()]
        self._parameters = parameters
        options.add_external_initializers(list(parameters), self._values)
        try:
            self._session = onnxruntime.InferenceSession(program.template, options, ["CPUExecutionProvider"])
        except (
            Exception
        ) as error:  # onnxruntime raises a class of its own for each status, without a common base
            raise DataError(f"the program can't be loaded with {parameters.layout}: {error}") from error
        self._check_signature()

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The program's outputs for a batch.

        Args:
            inputs: by name; every dtype and shape as in `program.inputs`, all with the same batch size.

        Returns:
            by name, in the order of `program.outputs`.

        Raises:
            DataError: a name is missing or unknown, or a dtype or shape is not the program's.
        """
        check_tensors(inputs, self.program.inputs)
        names = [spec.name for spec in self.program.outputs]
        try:
            values = self._session.run(names, dict(inputs))
        except Exception as error:  # as above: without a common base
            raise DataError(f"the program failed: {error}") from error
        return dict(zip(names, values, strict=True))

    def _check_signature(self) -> None:
        for kind, specs, found in (
            ("inputs", self.program.inputs, self._session.get_inputs()),
            ("outputs", self.program.outputs, self._session.get_outputs()),
        ):
            said, is_so = {spec.name for spec in specs}, {tensor.name for tensor in found}
            if said != is_so:
                raise DataError(
                    f"the program's {kind} are {sorted(is_so)}, its signature says {sorted(said)}"
                )


def check_tensors(tensors: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> None:
    """Refuse tensors that are not what the specs say, all with one batch size (the first dimension).

    Raises:
        DataError: with the name, what was found and what is needed.
    """
    needed = {spec.name for spec in specs}
    if set(tensors) != needed:
        raise DataError(f"the inputs {sorted(needed)} are needed, got {sorted(tensors)}")
    for spec in specs:
        tensor = tensors[spec.name]
        if tensor.dtype != np.dtype(spec.dtype):
            raise DataError(f"input {spec.name!r} is {tensor.dtype}, {spec.dtype} is needed")
        if len(tensor.shape) != len(spec.shape) or any(
            needs not in (-1, has) for needs, has in zip(spec.shape, tensor.shape, strict=True)
        ):
            raise DataError(f"input {spec.name!r} has shape {tensor.shape}, {shape_text(spec)} is needed")
    batches = {tensors[spec.name].shape[0] for spec in specs if spec.shape and spec.shape[0] == -1}
    if len(batches) > 1:
        raise DataError(f"the inputs have different batch sizes: {sorted(batches)}")


def shape_text(spec: TensorSpec) -> str:
    """A shape as people write it, with the batch named: `(batch, 64)`."""
    words = ["batch" if at == 0 and size == -1 else str(size) for at, size in enumerate(spec.shape)]
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def dense_network(
    layers: Sequence[DenseLayer], *, input_name: str = "inputs", classes: bool = False
) -> Program:
    """The program of a chain of dense layers, each activation(x · weight + bias).

    Its output is `probabilities` where the last activation is softmax, and `values` elsewhere: float32 of shape
    (-1, outputs of the last layer).

    Args:
        layers: first to last.
        input_name: the name of the input, float32 of shape (-1, inputs of the first layer).
        classes: whether a second output `classes`, int64 of shape (-1,), holds the most probable class.

    Raises:
        MissingExtra: the `onnx` package is not installed.
        DataError: the layers don't fit together, or an activation is unknown.
    """
    _check_layers(layers, classes)
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingExtra("onnx", "writing a servable program") from error

    result = "probabilities" if layers[-1].activation == "softmax" else "values"
    nodes, initialisers, value = [], [], input_name
    for number, layer in enumerate(layers):
        initialisers += [
            _without_data(layer.weight, (layer.inputs, layer.outputs)),
            _without_data(layer.bias, (layer.outputs,)),
        ]
        dense, last = f"_dense{number}", number == len(layers) - 1
        nodes.append(helper.make_node("Gemm", [value, layer.weight, layer.bias], [dense]))
        value = result if last else f"_active{number}"
        nodes.append(helper.make_node(_ACTIVATIONS[layer.activation], [dense], [value]))
    features, count = layers[0].inputs, layers[-1].outputs
    inputs = (TensorSpec(name=input_name, dtype="float32", shape=(-1, features)),)
    outputs = [TensorSpec(name=result, dtype="float32", shape=(-1, count))]
    infos = [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", count])]
    if classes:
        nodes.append(helper.make_node("ArgMax", [result], ["classes"], axis=-1, keepdims=0))
        outputs.append(TensorSpec(name="classes", dtype="int64", shape=(-1,)))
        infos.append(helper.make_tensor_value_info("classes", TensorProto.INT64, ["batch"]))
    graph = helper.make_graph(
        nodes,
        "dense_network",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["batch", features])],
        infos,
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="quorate")
    model.ir_version = _IR_VERSION
    return Program(model.SerializeToString(deterministic=True), inputs, tuple(outputs))


def from_graph(graph: OnnxGraph, layout: Layout) -> Program:
    """The program of a network that its framework has written as ONNX.

    Its output is called as that of `dense_network`.

    Args:
        graph: the network.
        layout: of the parameters, which become initialisers without data.

    Raises:
        MissingExtra: the `onnx` package is not installed.
        DataError: the activation is unknown.
    """
    if graph.activation not in _ACTIVATIONS:
        raise DataError(f"unknown activation {graph.activation!r}; accepted are {', '.join(_ACTIVATIONS)}")
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "writing a servable program") from error
    model = onnx.load_from_string(graph.model)
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in layout.names]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*constants, *(_without_data(*entry) for entry in layout.entries)])
    result = "probabilities" if graph.activation == "softmax" else "values"
    model.graph.node.append(
        onnx.helper.make_node(_ACTIVATIONS[graph.activation], [graph.output.name], [result])
    )
    model.graph.output[0].name = result
    output = dataclasses.replace(graph.output, name=result)
    inputs, outputs = (
        tuple(TensorSpec.model_validate(dataclasses.asdict(tensor)) for tensor in tensors)
        for tensors in (graph.inputs, (output,))
    )
    return Program(model.SerializeToString(deterministic=True), inputs, outputs)


def _check_layers(layers: Sequence[DenseLayer], classes: bool) -> None:
    if not layers:
        raise DataError("a network needs at least one layer")
    for layer in layers:
        if layer.activation not in _ACTIVATIONS:
            raise DataError(
                f"unknown activation {layer.activation!r}; accepted are {', '.join(_ACTIVATIONS)}"
            )
    for before, layer in itertools.pairwise(layers):
        if before.outputs != layer.inputs:
            raise DataError(
                f"layer {layer.weight!r} takes {layer.inputs} values, the layer before it gives {before.outputs}"
            )
    if classes and layers[-1].activation != "softmax":
        raise DataError("only a network that ends in softmax has classes")


def _without_data(name: str, shape: tuple[int, ...]) -> Any:
    """An initialiser that is declared external: its data is given by name when the model is loaded.

    The format asks for a location. This one names no file, so that nothing can be read by accident.
    """
    from onnx import TensorProto

    tensor = TensorProto(
        name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "*given when the model is loaded*"
    return tensor
