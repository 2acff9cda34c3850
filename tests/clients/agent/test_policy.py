"""The policy file, and what it says of terms."""

from pathlib import Path

import pytest

from quorate.clients.agent.judgement import Verdict, event_of, judge, refuse
from quorate.clients.agent.policy import Policy, read_policy
from quorate.endorsement import Endorsement
from quorate.errors import PlanError, PolicyRefused
from quorate.plan import Terms
from quorate.privacy.accounting import server_epsilon
from quorate.privacy.device_bound import device_example_epsilon
from tests.clients.agent.federation import OPERATOR, SIGNER
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, plan

POPULATION = 40
DP_SGD = {"dp_sgd": {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.1}}


def terms(**sections: object) -> Terms:
    secure = {"privacy": GAUSSIAN, "secure_aggregation": SECAGG}
    return plan(**{**secure, **sections}).resolved(POPULATION).terms()


def failing(
    policy: Policy,
    of: Terms,
    endorsement: Endorsement | None = None,
    spent: object = None,
    trained: object = None,
) -> set[str]:
    """The rules that the terms fail."""
    encoded = of.encoded()
    bounds = of.bounds(POPULATION)
    verdicts = judge(policy, of, encoded, bounds, endorsement, spent or {}, trained or {})  # type: ignore[arg-type]
    return {verdict.rule for verdict in verdicts if not verdict.passed}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_an_empty_file_asks_for_secure_aggregation_of_at_least_three(tmp_path):
    policy = read_policy(written(tmp_path, ""))
    assert policy == Policy()
    assert not failing(policy, terms())
    assert failing(policy, terms(privacy={"mechanism": "none"}, secure_aggregation={"protocol": "none"})) == {
        "secure-aggregation"
    }


def test_a_wrong_file_says_what_is_wrong_and_what_is_accepted(tmp_path):
    path = written(
        tmp_path,
        '[accept]\nmin_survivor = 3\nthreat_model = "none"\nsigners = ["ab"]\n[budget]\nepsilon = 0\n'
        '[conditions]\nwindow = "9-17"\n[limits]\nmemory_mb = "a lot"\n',
    )
    with pytest.raises(PlanError) as found:
        read_policy(path)
    problems = str(found.value)
    for part in (
        "policy.toml",
        "accept.min_survivor: unknown key (did you mean 'min_survivors'?)",
        "accept.threat_model: found 'none'; accepted: 'semi-honest', 'semi-malicious' or 'malicious'",
        "accept.signers",
        "budget.epsilon: found 0; accepted: a finite number above 0",
        "conditions.window: found '9-17'; accepted: HH:MM-HH:MM",
        "limits.memory_mb: found 'a lot'; accepted: a whole number",
    ):
        assert part in problems


@pytest.mark.parametrize("text", ["accept = [", "\xff"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=r"policy\.toml"):
        read_policy(path)


def test_terms_of_too_few_survivors_are_refused():
    accepted = terms().bounds(POPULATION).min_survivors
    assert not failing(Policy(accept={"min_survivors": accepted}), terms())
    assert failing(Policy(accept={"min_survivors": accepted + 1}), terms()) == {"survivors"}


def test_an_ideal_sum_is_no_secure_aggregation():
    assert failing(Policy(), terms(secure_aggregation=IDEAL)) == {"secure-aggregation"}


@pytest.mark.parametrize(
    ("least", "offered", "refused"),
    [
        ("semi-honest", "semi-honest", False),
        ("semi-malicious", "semi-honest", True),
        ("semi-malicious", "semi-malicious", False),
        ("malicious", "semi-malicious", True),
        ("semi-honest", "malicious", False),
    ],
)
def test_a_weaker_threat_model_than_the_least_is_refused(least, offered, refused):
    sections = {**SECAGG, "threat_model": offered, "min_survivors": 18}
    of = terms(secure_aggregation=sections, rounds={"count": 3, "cohort": 20, "sampling": "fixed"})
    assert failing(Policy(accept={"threat_model": least}), of) == ({"threat-model"} if refused else set())


def test_a_task_that_the_owner_did_not_name_is_refused():
    assert failing(Policy(accept={"tasks": ["keyboard"]}), terms()) == {"task"}
    assert not failing(Policy(accept={"tasks": ["keyboard", "softmax"]}), terms())


def test_terms_are_accepted_from_a_signer_that_the_owner_named_only():
    policy, of = Policy(accept={"signers": [SIGNER]}), terms()
    good = Endorsement.of(of.encoded(), OPERATOR)
    assert not failing(policy, of, good)
    assert failing(policy, of, None) == {"signer"}
    assert failing(policy, of, Endorsement.of(b"other terms", OPERATOR)) == {"signer"}
    assert failing(Policy(accept={"signers": ["00" * 32]}), of, good) == {"signer"}


def test_a_wrong_signature_is_refused_even_where_none_is_asked_for():
    assert failing(Policy(), terms(), Endorsement.of(b"other terms", OPERATOR)) == {"signer"}


def test_a_plan_without_privacy_does_not_fit_a_budget():
    assert failing(Policy(budget={"epsilon": 1e6}), terms(privacy=CLIPPED)) == {"budget"}


def test_a_budget_allows_as_many_participations_as_fit_and_no_more():
    of = terms()
    event = event_of(of, of.bounds(POPULATION))
    assert event is not None
    five = server_epsilon({event: 5}, 1e-6)
    policy = Policy(budget={"epsilon": five * 1.001, "delta": 1e-6})
    assert not failing(policy, of, spent={event: 4})
    assert failing(policy, of, spent={event: 5}) == {"budget"}


def test_what_other_tasks_spent_counts_too():
    of = terms()
    other = event_of(terms(privacy={**GAUSSIAN, "noise_multiplier": 0.3}), of.bounds(POPULATION))
    event = event_of(of, of.bounds(POPULATION))
    assert event is not None
    policy = Policy(budget={"epsilon": server_epsilon({event: 5}, 1e-6), "delta": 1e-6})
    assert not failing(policy, of, spent={event: 1})
    assert failing(policy, of, spent={event: 1, other: 3}) == {"budget"}


def test_an_example_budget_allows_as_many_trainings_as_fit_and_no_more():
    of = terms(training=DP_SGD)
    event = of.training.example_event
    assert event is not None
    three = device_example_epsilon({event: 3}, 1e-5)
    policy = Policy(example_budget={"epsilon": three * 1.001, "delta": 1e-5})
    assert not failing(policy, of, trained={event: 2})
    assert failing(policy, of, trained={event: 3}) == {"example-budget"}


def test_a_plan_that_protects_no_example_does_not_fit_an_example_budget():
    policy = Policy(example_budget={"epsilon": 1e6})
    assert failing(policy, terms()) == {"example-budget"}
    assert failing(policy, terms(training=DP_SGD), trained={None: 1}) == {"example-budget"}
    assert not failing(Policy(), terms(training=DP_SGD))


def test_both_budgets_are_kept_apart():
    of = terms(training=DP_SGD, privacy=CLIPPED)
    assert not failing(Policy(example_budget={"epsilon": 100.0, "delta": 1e-5}), of)
    assert failing(Policy(budget={"epsilon": 100.0}), of) == {"budget"}


def test_a_refusal_has_the_first_failed_rules_code_and_all_of_them_in_words():
    verdicts = [
        Verdict("task", True, "a", "a"),
        Verdict("survivors", False, "3", "at least 5"),
        Verdict("budget", False, "ε 9", "at most 4"),
    ]
    with pytest.raises(PolicyRefused) as refused:
        refuse(verdicts)
    assert refused.value.code == "survivors"
    assert "at least 5" in str(refused.value)
    assert "at most 4" in str(refused.value)


def test_what_passes_every_rule_is_not_refused():
    refuse([Verdict("task", True, "a", "a")])
