import math

import pytest

from quorate import strategies
from quorate.errors import PlanError
from quorate.parameters import Layout
from quorate.rounds import Vector
from quorate.strategies import Strategy, aggregators, local_rules, server_rules, strategy

LAYOUT = Layout((("weight", (2, 3)), ("bias", (3,))))
FACTORIES = {
    "fedavg": strategies.fedavg,
    "fedadam": strategies.fedadam,
    "fedyogi": strategies.fedyogi,
    "fedadagrad": strategies.fedadagrad,
    "fedprox": strategies.fedprox,
    "scaffold": strategies.scaffold,
    "median": strategies.median,
}


def fedavg_decay(learning_rate=1.0):
    """FedAvg whose server step decays as 1/√t."""
    return Strategy(
        "fedavg-decay",
        local_rules.sgd(),
        aggregators.mean(),
        server_rules.sgd(lambda t: learning_rate / math.sqrt(t + 1)),
    )


@pytest.mark.parametrize("name", FACTORIES)
def test_a_strategy_can_be_made_again_from_its_name_and_settings(name):
    made = FACTORIES[name]()
    assert made.name == name
    assert made.recorded
    assert FACTORIES[made.name](**made.settings) == made


def test_the_settings_are_the_arguments_with_the_defaults_filled_in():
    made = strategies.fedadam(0.5, tau=0.01)
    assert made.settings == {"learning_rate": 0.5, "beta1": 0.9, "beta2": 0.99, "tau": 0.01}
    assert made.server == server_rules.Adam(0.5, 0.9, 0.99, 0.01)


def test_a_plain_function_makes_a_strategy_that_works_and_says_it_is_not_recorded():
    made = fedavg_decay(0.5)
    assert made.name == "fedavg-decay"
    assert not made.recorded
    assert made.settings == {}
    assert made.vectors(LAYOUT).names == ("delta",)


def test_the_same_function_decorated_is_recorded():
    made = strategy("fedavg-decay")(fedavg_decay)(learning_rate=0.5)
    assert made.recorded
    assert made.settings == {"learning_rate": 0.5}


def test_a_subclass_survives_the_decorator():
    class Personal(Strategy):
        def shared(self, layout):
            return layout.subset(["weight"])

    made = strategy("personal")(
        lambda: Personal("x", local_rules.sgd(), aggregators.mean(), server_rules.sgd())
    )()
    assert isinstance(made, Personal)
    assert made.name == "personal"
    assert made.vectors(made.shared(LAYOUT)).vectors == (Vector("delta", 6),)


@pytest.mark.parametrize("name", FACTORIES)
def test_only_the_median_needs_single_updates(name):
    assert FACTORIES[name]().aggregator.linear == (name != "median")


def test_everything_is_shared_and_the_delta_is_as_long():
    for name in ("fedavg", "fedadam", "fedprox", "median"):
        made = FACTORIES[name]()
        assert made.shared(LAYOUT) == LAYOUT
        assert made.vectors(LAYOUT).vectors == (Vector("delta", 9),)


def test_scaffold_carries_the_change_of_the_control_variate_too():
    made = strategies.scaffold(control_bound=0.5)
    assert made.vectors(LAYOUT).vectors == (Vector("delta", 9), Vector("control", 9, 0.5))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: strategies.fedavg(learning_rate=0), "learning_rate: 0 was found"),
        (lambda: strategies.fedavg(learning_rate=math.inf), "learning_rate: inf"),
        (lambda: strategies.fedavg(learning_rate=math.nan), "learning_rate: nan"),
        (lambda: strategies.fedavg(learning_rate="fast"), "learning_rate: 'fast'"),
        (lambda: strategies.fedavg(learning_rate=True), "learning_rate: True"),
        (lambda: strategies.fedavg(momentum=1.0), r"momentum: 1.0 was found; a number in \[0, 1\)"),
        (lambda: strategies.fedadam(beta1=-0.1), "beta1: -0.1"),
        (lambda: strategies.fedadam(beta2=1), "beta2: 1"),
        (lambda: strategies.fedadam(tau=0), "tau: 0 was found; a number above 0"),
        (lambda: strategies.fedyogi(beta2=1), "beta2: 1"),
        (lambda: strategies.fedadagrad(tau=-1), "tau: -1 was found; a number above 0"),
        (lambda: strategies.fedprox(mu=-1), "mu: -1 was found; a number of at least 0"),
        (lambda: strategies.scaffold(control_bound=0), "bound: 0"),
    ],
)
def test_a_number_out_of_range_is_refused_with_what_is_accepted(make, said):
    with pytest.raises(PlanError, match=said):
        make()
