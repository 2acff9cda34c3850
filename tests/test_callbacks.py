"""What is told of every round: logs that are continued, the best parameters kept, and an early end."""

import csv

import numpy as np
import pytest
import safetensors.numpy

import quorate as q
from quorate import assembly
from quorate.callbacks import Callback, CsvLog, EarlyStopping, Enough, KeepBest, TensorBoardLog
from quorate.errors import DataError, QuorateError
from quorate.parameters import Parameters
from quorate.rounds import Kind, Outcome
from quorate.server.coordinator import RoundReport
from tests.federations import GAUSSIAN, IDEAL, plan, wine

PARAMETERS = Parameters.of({"w": np.arange(4.0)})


def silent(report):
    """Nobody looks."""


def fleet():
    return q.Simulation(wine(12), seed=2)


def report(number, outcome=Outcome.COMMITTED, **metrics):
    return RoundReport(number, Kind.FIT, number, outcome, 10, 9, {"mask": 1}, metrics, None)


def stopped_after(callback, values, **more):
    for number, value in enumerate(values, 1):
        try:
            callback(report(number, accuracy=value, loss=-value, **more), PARAMETERS)
        except Enough:
            return number
    return None


@pytest.mark.parametrize(
    ("callback", "values", "number"),
    [
        (EarlyStopping("accuracy", patience=2), [0.1, 0.5, 0.4, 0.5, 0.9], 4),
        (EarlyStopping("accuracy", patience=2), [0.1, 0.2, 0.1, 0.3, 0.2], None),
        (EarlyStopping("loss", patience=2), [0.1, 0.5, 0.4, 0.3], 4),
        (EarlyStopping("loss", patience=1, larger=True), [0.1, 0.2], 2),
        (EarlyStopping("accuracy", patience=1, least_change=0.2), [0.1, 0.4, 0.5], 3),
    ],
)
def test_a_run_ends_when_its_metric_is_no_longer_better(callback, values, number):
    assert stopped_after(callback, values) == number


def test_aborted_rounds_do_not_count():
    callback = EarlyStopping("accuracy", patience=1)
    callback(report(1, accuracy=0.5), PARAMETERS)
    callback(report(2, Outcome.ABORTED), PARAMETERS)
    with pytest.raises(Enough):
        callback(report(3, accuracy=0.4), PARAMETERS)


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(QuorateError, match="no metric 'f1'; these are measured: accuracy"):
        EarlyStopping("f1", patience=1)(report(1, accuracy=0.5), PARAMETERS)
    with pytest.raises(DataError, match="patience: 0"):
        EarlyStopping("accuracy", patience=0)


def made(count=6, **more):
    return plan(rounds={"count": count, "cohort": 6}, **more)


def test_a_run_that_ended_early_is_finished_and_its_last_state_is_published(tmp_path):
    target = {"registry": str(tmp_path / "registry"), "model": "wine"}
    early = made(publish=target)
    callbacks = [EarlyStopping("accuracy", patience=1, least_change=1.0)]
    finished = assembly.run(early, fleet=fleet(), state=tmp_path / "state", watch=silent, callbacks=callbacks)
    assert len(finished.committed) == 2
    assert [version["round"] for version in finished.versions] == [finished.committed[-1].number]
    again = assembly.run(early, fleet=fleet(), state=tmp_path / "state", watch=silent)
    assert len(again.committed) == 2


class Stop(Callback):
    """The process ends after a round."""

    def __init__(self, after):
        self.after = after

    def __call__(self, report, parameters):
        if report.version == self.after:
            raise KeyboardInterrupt


def test_an_early_end_counts_the_rounds_before_a_restart(tmp_path):
    def early():
        return EarlyStopping("accuracy", patience=3, least_change=1.0)

    straight = assembly.run(made(), fleet=fleet(), watch=silent, callbacks=[early()])
    with pytest.raises(KeyboardInterrupt):
        assembly.run(made(), fleet=fleet(), state=tmp_path, watch=silent, callbacks=[early(), Stop(2)])
    resumed = assembly.run(made(), fleet=fleet(), state=tmp_path, watch=silent, callbacks=[early()])
    assert len(resumed.committed) == len(straight.committed) == 4


def test_the_best_parameters_are_kept_with_their_metrics_and_a_later_run_goes_on_from_them(tmp_path):
    file = tmp_path / "best.safetensors"
    first = KeepBest(file)
    for number, accuracy in enumerate([0.3, 0.8, 0.5], 1):
        first(report(number, accuracy=accuracy), Parameters.of({"w": np.full(3, number)}))
    assert safetensors.numpy.load_file(file)["w"].tolist() == [2, 2, 2]
    later = KeepBest(file)
    later(report(4, accuracy=0.7), Parameters.of({"w": np.full(3, 4)}))
    assert safetensors.numpy.load_file(file)["w"].tolist() == [2, 2, 2]
    later(report(5, accuracy=0.9), Parameters.of({"w": np.full(3, 5)}))
    with safetensors.safe_open(file, "numpy") as held:
        assert held.metadata() == {"round": "5", "version": "5", "accuracy": "0.9"}
    with pytest.raises(DataError, match="does not say which f1"):
        KeepBest(file, "f1")


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_log_has_a_line_a_round_and_is_continued_by_a_resumed_run(tmp_path):
    file = tmp_path / "rounds.csv"
    private = made(privacy=GAUSSIAN, secure_aggregation={**IDEAL, "min_survivors": 3})
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        assembly.run(private, fleet=fleet(), state=state, watch=silent, callbacks=[CsvLog(file), Stop(2)])
    finished = assembly.run(private, fleet=fleet(), state=state, watch=silent, callbacks=[CsvLog(file)])
    logged = [row for row in rows(file) if row["outcome"] == "committed"]
    assert [int(row["version"]) for row in logged] == [1, 2, 3, 4, 5, 6]
    assert float(logged[-1]["accuracy"]) == finished.metrics["accuracy"]
    assert float(logged[-1]["epsilon_released"]) == finished.epsilon.released
    assert all(float(row["seconds"]) >= 0 for row in logged)


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    (tmp_path / "data.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="is not a log of rounds"):
        CsvLog(tmp_path / "data.csv")
    assert (tmp_path / "data.csv").read_text() == "x,y\n1,2\n"


def test_tensorboard_reads_what_is_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardLog(tmp_path) as log:
        finished = assembly.run(made(count=3), fleet=fleet(), watch=silent, callbacks=[log])
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    scalars = read.Scalars("metrics/accuracy")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    assert scalars[-1].value == pytest.approx(finished.metrics["accuracy"], rel=1e-6)
    assert read.Scalars("round/survivors")[0].value == finished.committed[0].survivors
