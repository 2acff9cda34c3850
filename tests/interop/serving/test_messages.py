"""The endpoint's answers, read with the messages of the official tensorflow-serving-api."""

import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

import quorate as q
from quorate.server.serving import Endpoint
from quorate.simulations import datasets

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    digits = datasets.digits().partition("iid", clients=10, seed=0)
    plan = q.Plan(
        task=q.Task(q.models.softmax(64, 10)), rounds=q.Rounds(count=1, cohort=10, sampling="fixed")
    )
    registry = tmp_path_factory.mktemp("serving") / "registry"
    q.run(plan, fleet=q.Simulation(digits), watch=lambda report: None).publish(registry, "digits")
    with Endpoint(registry, port=0) as serving:
        yield f"{serving.url}/v1/models/digits"


def test_the_status_is_their_message(url):
    response = json_format.Parse(httpx.get(url).text, get_model_status_pb2.GetModelStatusResponse())
    (status,) = response.model_version_status
    assert status.version == 1
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.status.error_code == 0


def test_the_metadata_are_their_message_and_make_a_request_that_is_answered(url):
    found = httpx.get(f"{url}/metadata").json()
    signatures = json_format.ParseDict(
        found["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap()
    )
    (name,) = signatures.signature_def
    signature = signatures.signature_def[name]
    batch = {}
    for key, info in signature.inputs.items():
        shape = [2 if dim.size == -1 else dim.size for dim in info.tensor_shape.dim]
        batch[key] = np.zeros(shape).tolist()
    answer = httpx.post(f"{url}:predict", json={"signature_name": name, "inputs": batch}).json()["outputs"]
    (output,) = signature.outputs.values()
    assert np.shape(answer)[1:] == tuple(dim.size for dim in output.tensor_shape.dim)[1:]
    assert signature.method_name == "tensorflow/serving/predict"
