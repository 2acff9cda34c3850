"""Questions: what a member contributes, whatever its data are, and what the cells say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.statistics import Statistic, bounded_mean, categories, histogram
from quorate.errors import DataError, PlanError
from quorate.plan import TaskSection
from quorate.rounds import Instruction
from quorate.task import Task

QUESTIONS = [histogram([0, 1, 2.5]), categories([0, 3]), bounded_mean(-1, 3)]
ids = [question.name for question in QUESTIONS]


def targets(*values: float) -> Examples:
    return Examples(np.zeros((len(values), 1)), np.array(values))


def answer(statistic: Statistic, *members: Examples):
    cells = np.mean([statistic.contribution(member) for member in members], axis=0)
    return statistic.answer(statistic.layout.unflatten(cells.astype(np.float32)))


@pytest.mark.parametrize("question", QUESTIONS, ids=ids)
@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_a_contribution_is_bounded_for_any_data(question, values):
    given = question.contribution(targets(*values))
    assert given.shape == (question.layout.size,)
    assert (given >= 0).all()
    assert given.sum() <= 1 + 1e-9
    assert np.linalg.norm(given) <= 1 + 1e-9
    if question.name != "categories" and not np.isnan(values).all():
        assert given.sum() == pytest.approx(1)


def test_a_bin_holds_its_lower_edge_and_the_last_one_both():
    shares = histogram([0, 1, 2, 4]).contribution(targets(0, 0.5, 1, 2, 3, 4, 9, -7, math.inf, math.nan))
    np.testing.assert_allclose(shares * 9, [3, 1, 5])


def test_members_count_the_same_however_many_examples_they_have():
    found = answer(categories([1, 2]), targets(1, 1, 1, 1), targets(2), targets(1, 2))
    assert found == {"1": pytest.approx(0.5), "2": pytest.approx(0.5)}


def test_other_categories_count_nowhere():
    np.testing.assert_allclose(categories([1, 2]).contribution(targets(1, 5, 5, 5)), [0.25, 0])


def test_a_mean_is_split_between_the_ends():
    question = bounded_mean(10, 20)
    np.testing.assert_allclose(question.contribution(targets(12, 14)), [0.7, 0.3])
    assert answer(question, targets(12, 14), targets(99), targets(-math.inf)) == {
        "mean": pytest.approx((13 + 20 + 10) / 3)
    }


@given(st.integers(1, 12))
def test_an_answer_does_not_depend_on_how_many_took_part(absent):
    question, members = bounded_mean(0, 1), [targets(0.25), targets(0.5)]
    cells = sum(question.contribution(member) for member in members) / (2 + absent)
    assert question.answer({"cells": cells}) == {"mean": pytest.approx(0.375)}


def test_a_column_of_the_features_can_be_asked_for():
    images = Examples(np.arange(8.0).reshape(2, 2, 2), np.zeros(2))
    np.testing.assert_allclose(histogram([0, 4, 8], column=3).contribution(images), [0.5, 0.5])
    with pytest.raises(DataError, match="column 4 is asked for, and examples have 4 features"):
        histogram([0, 4, 8], column=4).client(images)


def test_cells_that_noise_made_negative_are_empty():
    shares = categories([0, 1, 2]).shares({"cells": np.array([-0.1, 0.3, 0.1], np.float32)})
    np.testing.assert_allclose(shares, [0, 0.75, 0.25])
    with pytest.raises(DataError, match="more noise than answer"):
        categories([0, 1]).shares({"cells": np.array([-0.1, 0.0], np.float32)})


def test_a_client_contributes_whatever_it_is_told_to_start_from():
    question = histogram([0, 1, 2])
    client = question.client(targets(0.5, 1.5))
    start = question.layout.unflatten(np.ones(2, np.float32))
    update, state = client.fit(start, Instruction("sgd", {}, {}, None), {})
    np.testing.assert_array_equal(update.vectors["delta"], np.float32([0.5, 0.5]))
    assert (update.examples, update.metrics, state) == (2, {}, {})
    assert client.rules == {"sgd"}


@pytest.mark.parametrize("question", QUESTIONS, ids=ids)
def test_a_question_can_be_written_down(question):
    section = TaskSection(name=question.name, **question.settings)
    again = section.resolve()
    assert again.description() == Task(question).description()
    assert again.model == question


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda: histogram([0]), r"edges: \[0.0\] was found"),
        (lambda: histogram([0, 2, 1]), "numbers that grow"),
        (lambda: histogram([0, math.inf]), "finite"),
        (lambda: categories([]), "at least one whole number"),
        (lambda: categories([1, 1]), "none twice"),
        (lambda: bounded_mean(1, 1), "high: 1 was found"),
        (lambda: bounded_mean(0, math.nan), "finite"),
        (lambda: bounded_mean(0, 1, column=-1), "column: -1 was found"),
    ],
)
def test_a_wrong_question_is_refused(made, problem):
    with pytest.raises(PlanError, match=problem):
        made()


def test_a_statistic_is_not_served():
    with pytest.raises(PlanError, match="predicts nothing"):
        QUESTIONS[0].program_spec()
