"""`quorate privacy audit`: attacks beside the claim."""

import json

import pytest

from tests.cli.commands import PLAN, quorate


@pytest.mark.slow
def test_an_audit_tells_claim_bounds_and_attacks_and_draws_what_leaks(empty):
    (empty / "plan.toml").write_text(PLAN)
    done = quorate(
        "privacy", "audit", "plan.toml", "--canaries", "100", "--inversion", "leaks.png", "--json", cwd=empty
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["claim_stands"]
    assert 0 <= found["one_run_bound"] <= found["epsilon_released"]
    assert 0 <= found["gaussian_bound"] <= found["epsilon_released"]
    assert found["canaries"]["in"] + found["canaries"]["out"] == 100
    assert [attack["name"] for attack in found["membership"]] == ["loss threshold"]
    assert (empty / "leaks.png").exists()


def test_a_plan_without_a_claim_can_not_be_audited(empty):
    plain = PLAN[: PLAN.index("[privacy]")]
    (empty / "plan.toml").write_text(plain)
    done = quorate("privacy", "audit", "plan.toml", cwd=empty)
    assert done.returncode == 2
    assert "there is no claim to audit" in done.stderr
