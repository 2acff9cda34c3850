"""scikit-learn's estimators: continued from the broadcast parameters, under every local rule that has a meaning."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor

import quorate as q
from quorate import assembly
from quorate.artifacts.programs import OnnxRuntime
from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError, PlanError, PolicyRefused
from quorate.server.publishing import program
from quorate.simulations import datasets
from quorate.simulations.source import Simulation
from quorate.strategies import local_rules
from tests.clients.adapters.frameworks import RULES, blobs, instruction, some, told
from tests.federations import wine

CLASSIFIERS = {
    "linear": SGDClassifier(loss="log_loss", alpha=0.01),
    "margin": SGDClassifier(alpha=0.01),
    "network": MLPClassifier((8, 4), solver="sgd"),
    "adam": MLPClassifier((8,), activation="tanh"),
}
REGRESSORS = {
    "linear": SGDRegressor(),
    "network": MLPRegressor(hidden_layer_sizes=(8,), activation="logistic"),
}


def model(estimator, data=None, **options):
    if not isinstance(estimator, SGDRegressor | MLPRegressor):
        options = {"classes": 3, **options}
    return q.clients.sklearn(estimator, data, features=5, **options)


def values(examples=14):
    data = blobs(examples)
    return Examples(data.x, data.x @ [1.0, -2.0, 0.5, 0.0, 1.0])


# --- Training


def test_sgd_takes_the_steps_that_the_estimator_would_take_by_itself():
    made, data = model(CLASSIFIERS["linear"]), blobs()
    start = some(made.layout)[0]
    update, state = made.client(data).fit(start, instruction(epochs=1, learning_rate=0.05), {})
    by_itself = SGDClassifier(loss="log_loss", alpha=0.01, learning_rate="constant", eta0=0.05, shuffle=False)
    by_itself.partial_fit(data.x[:1], data.y[:1], classes=[0, 1, 2])
    by_itself.coef_[:], by_itself.intercept_[:] = start["weight"].T, start["bias"]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(14)
    by_itself.partial_fit(data.x[order], data.y[order])
    moved = made.layout.unflatten(start.vector + update.vectors["delta"])
    np.testing.assert_allclose(moved["weight"], by_itself.coef_.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["bias"], by_itself.intercept_, rtol=1e-4, atol=1e-5)
    assert state == {}
    assert update.vectors["delta"].dtype == np.float32


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_applied_to_what_partial_fit_did(rule):
    made, data = model(CLASSIFIERS["network"]), blobs()
    start = some(made.layout)[0]
    n = made.layout.size
    ins, state = told(rule, made.layout, epochs=1, batch_size=14)
    plain, _ = made.client(data).fit(start, instruction(epochs=1, batch_size=14), {})
    update, kept = made.client(data).fit(start, ins, state)
    context = rule.begin(start.vector, ins.extras, state or rule.initial(n))
    step = rule.gradient(-plain.vectors["delta"] / np.float32(0.1), start.vector, context)
    vectors, new = rule.finish(start.vector, start.vector - np.float32(0.1) * step, 1, 0.1, context)
    for name, vector in vectors.items():
        np.testing.assert_allclose(update.vectors[name], vector, rtol=1e-3, atol=1e-5)
    for name, vector in new.items():
        np.testing.assert_allclose(kept[name], vector, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS.values(), LogisticRegression(C=10)])
def test_a_client_need_not_have_examples_of_every_class(estimator):
    made, data = model(estimator), blobs()
    own = data.take(np.flatnonzero(data.y != 1))
    start = some(made.layout)[0]
    update, _ = made.client(own).fit(start, instruction(epochs=20, learning_rate=0.02), {})
    after = made.evaluate(made.layout.unflatten(start.vector + update.vectors["delta"]), own)
    assert after["accuracy"] > max(0.7, update.metrics["accuracy"])


@pytest.mark.parametrize("estimator", REGRESSORS.values(), ids=REGRESSORS)
def test_regressors_learn(estimator):
    made, data = model(estimator), values(60)
    start = made.initial(np.random.default_rng(0))
    update, _ = made.client(data).fit(start, instruction(epochs=30, learning_rate=0.01), {})
    before, after = (
        made.evaluate(p, data) for p in (start, made.layout.unflatten(start.vector + update.vectors["delta"]))
    )
    assert made.metrics == ("loss", "mean_absolute_error")
    assert after["loss"] < 0.5 * before["loss"]


def test_logistic_regression_goes_on_from_where_it_is_and_ends_at_its_own_optimum():
    made, data = model(LogisticRegression(C=1.0)), blobs(60)
    start = made.layout.zeros()
    few, _ = made.client(data).fit(start, instruction(epochs=2), {})
    many, _ = made.client(data).fit(made.layout.unflatten(few.vectors["delta"]), instruction(epochs=200), {})
    reached = made.estimator(made.layout.unflatten(few.vectors["delta"] + many.vectors["delta"]))
    alone = LogisticRegression(C=1.0, max_iter=200).fit(data.x, data.y)
    assert np.abs(few.vectors["delta"]).max() > 0
    np.testing.assert_allclose(reached.predict_proba(data.x), alone.predict_proba(data.x), atol=2e-3)


def test_logistic_regression_has_no_gradient_to_add_to_and_refuses_rules_that_would():
    assert model(LogisticRegression()).client(blobs()).rules == {"sgd"}
    assert model(CLASSIFIERS["linear"]).client(blobs()).rules == set(local_rules.names())
    plan = q.Plan(
        task=q.Task(q.clients.sklearn(LogisticRegression(), features=13, classes=3)),
        rounds=q.Rounds(count=1, cohort=8),
        strategy=q.strategies.fedprox(mu=0.1),
    )
    with pytest.raises(PolicyRefused, match="needs the local rule 'proximal'; this client has sgd"):
        assembly.run(plan, fleet=Simulation(wine(), seed=0), watch=lambda report: None)


# --- The model


def test_a_fitted_estimator_is_where_learning_starts_and_is_not_changed():
    data = blobs(60)
    fitted = SGDClassifier(loss="log_loss", random_state=0).fit(data.x, data.y)
    before = fitted.coef_.copy()
    made = model(fitted)
    start = made.initial(np.random.default_rng(0))
    np.testing.assert_allclose(start["weight"], fitted.coef_.T, rtol=1e-6)
    made.client(data).fit(start, instruction(), {})
    assert (fitted.coef_ == before).all()
    assert made.evaluate(start, data)["accuracy"] == fitted.score(data.x, data.y)


def test_a_linear_model_starts_at_zero_and_a_network_at_random_weights_that_follow_the_seed():
    assert not model(CLASSIFIERS["linear"]).initial(np.random.default_rng(0)).vector.any()
    made = model(CLASSIFIERS["network"])
    one, two, other = (made.initial(np.random.default_rng(seed)).vector for seed in (1, 1, 2))
    assert one.tobytes() == two.tobytes() != other.tobytes()
    assert np.abs(made.layout.unflatten(one)["layer1.weight"]).max() <= np.sqrt(6 / 13)


def test_two_classes_have_one_output():
    made = q.clients.sklearn(LogisticRegression(), features=5, classes=2)
    assert made.layout.entries == (("weight", (5, 1)), ("bias", (1,)))
    update, _ = made.client(blobs(classes=2)).fit(made.layout.zeros(), instruction(epochs=50), {})
    assert made.evaluate(made.layout.unflatten(update.vectors["delta"]), blobs(classes=2))["accuracy"] > 0.8


@pytest.mark.parametrize("estimator", [CLASSIFIERS["network"], CLASSIFIERS["adam"], LogisticRegression()])
def test_the_program_predicts_as_the_estimator_does(estimator):
    made = model(estimator)
    start, x = some(made.layout)[0], blobs().x
    served = OnnxRuntime(program(q.Task(made)), start).predict({"inputs": x})["probabilities"]
    np.testing.assert_allclose(served, made.estimator(start).predict_proba(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: q.clients.sklearn(LinearRegression(), features=5),
            "LinearRegression was found; accepted: SGDC",
        ),
        (lambda: q.clients.sklearn(SGDClassifier(), features=5), "classes: None was found; a whole number"),
        (
            lambda: q.clients.sklearn(SGDRegressor(), features=5, classes=2),
            "is a regressor; None is accepted",
        ),
        (lambda: model(SGDClassifier(average=True)), "estimator.average: True"),
        (lambda: model(MLPClassifier(solver="lbfgs")), "'sgd' and 'adam' are accepted"),
        (lambda: model(MLPRegressor(loss="poisson")), "estimator.loss: 'poisson'"),
        (lambda: model(MLPClassifier(early_stopping=True)), "early_stopping: True"),
        (lambda: model(LogisticRegression(solver="liblinear")), "solver: 'liblinear'"),
    ],
)
def test_estimators_that_can_not_be_continued_are_refused(make, said):
    with pytest.raises(PlanError, match=said):
        make()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Examples(np.zeros((2, 4)), np.zeros(2, int)), r"takes 5 features and a target, got shapes \(2, 4\)"),
        (Examples(np.zeros((2, 5)), np.array([0, 3])), "from 0 to 2, got int64 from 0 to 3"),
        (Examples(np.zeros((2, 5)), np.zeros(2)), "got float32"),
        (Examples(np.zeros((0, 5)), np.zeros(0, int)), "at least one example"),
        (None, "needs data"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, said):
    with pytest.raises(DataError, match=said):
        model(SGDClassifier()).client(data)


def test_a_seeded_run_learns_and_can_be_repeated():
    made = q.clients.sklearn(MLPClassifier((16,), solver="sgd"), features=13, classes=3)
    data = datasets.wine().partition("iid", clients=12, seed=0)
    plan = q.Plan(
        task=q.Task(made),
        rounds=q.Rounds(count=6, cohort=12, sampling="fixed"),
        strategy=q.strategies.scaffold(),
    )
    one, two = (
        assembly.run(plan, fleet=Simulation(data, seed=1), watch=lambda report: None) for _ in range(2)
    )
    assert one.model.vector.tobytes() == two.model.vector.tobytes()
    assert one.committed[-1].metrics["accuracy"] > 0.8
