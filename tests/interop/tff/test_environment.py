"""The environment is what it says: these versions, together, with our own package in the same process."""

from importlib.metadata import version

import numpy as np
import pytest

pytestmark = pytest.mark.interop


def test_the_pinned_versions_are_installed():
    found = {
        name: version(name)
        for name in ("tensorflow-federated", "tensorflow-privacy", "tensorflow-empirical-privacy", "flwr")
    }
    assert found == {
        "tensorflow-federated": "0.87.0",
        "tensorflow-privacy": "0.9.0",
        "tensorflow-empirical-privacy": "0.1.0",
        "flwr": "1.41.0",
    }


def test_everything_is_imported_into_one_process():
    import flwr
    import tensorflow_federated
    import tensorflow_privacy
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
        membership_inference_attack,
    )
    from tensorflow_serving.apis import predict_pb2

    import quorate.assembly
    import quorate.cli
    import quorate.wire.frames

    assert all(
        (flwr, tensorflow_federated, tensorflow_privacy, membership_inference_attack, predict_pb2, quorate)
    )


def test_a_run_of_ours_is_the_same_with_the_older_numpy_and_protobuf(tmp_path):
    import quorate as q
    from quorate.simulations import datasets

    assert np.__version__.startswith("1.26.")
    digits = datasets.digits().partition("iid", clients=20, seed=0)
    plan = q.Plan(
        task=q.Task(q.models.softmax(64, 10)),
        rounds=q.Rounds(count=2, cohort=8),
        privacy=q.privacy.DistributedGaussian(clip_norm=0.5, noise_multiplier=1.0),
        secure_aggregation=q.SecAggPlus(),
    )
    done = q.run(plan, fleet=q.Simulation(digits, seed=1), watch=lambda report: None)
    assert len(done.committed) == 2
    assert done.epsilon is not None
    assert done.publish(tmp_path / "registry", "digits").number == 1
