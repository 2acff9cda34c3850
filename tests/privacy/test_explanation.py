"""What is said about a plan's privacy agrees with the account."""

import math
from dataclasses import replace

from quorate.privacy import (
    CentralGaussian,
    CentralLaplace,
    DistributedGaussian,
    DistributedSkellam,
    DpSgd,
    Epsilons,
    LocalGaussian,
    TruncatedPoissonSampledEvent,
    example_epsilon,
    forecast,
    forecast_server,
    most_participations,
)
from quorate.privacy.explanation import Situation, explain, kept_after_withdrawal
from quorate.rounds import CohortBounds, SumShape, Vector, VectorSpec

BOUNDS = CohortBounds(largest=140, min_survivors=70, honest=67, denominator=100.0)
SUM = DistributedGaussian(clip_norm=0.5, noise_multiplier=2.0).event(
    SumShape(VectorSpec((Vector("delta", 650),)), BOUNDS, 32)
)
EVENT = TruncatedPoissonSampledEvent(300, 1 / 3, 140, SUM)
SITUATION = Situation(
    EVENT, BOUNDS, 1, 30, 30, 300, 100, 300**-1.1, 5.0, 0.5, False, 16, "secagg+", "semi-honest", False, False
)


def text(situation: Situation) -> str:
    return "\n".join(sentence for _, sentences in explain(situation) for sentence in sentences)


def test_both_epsilons_are_said_with_what_they_mean() -> None:
    said = text(SITUATION)
    delta = 300**-1.1
    assert f"released ε {forecast(EVENT, 30, delta):.3g} after 30 rounds (amplified" in said
    assert (
        f"server ε {forecast_server(EVENT, 17, delta):.3g} for the member that is drawn most often, about 17"
        in said
    )
    assert "zero-out of one user's whole contribution" in said
    assert "noise up to that of 140 members" in said
    assert "before its released ε passes 5" in said


def test_without_a_secret_draw_nothing_is_said_to_be_amplified() -> None:
    said = text(replace(SITUATION, event=SUM))
    assert "without amplification" in said
    assert "in secret" not in said


def test_where_quick_members_come_more_often_the_quickest_is_reckoned_with() -> None:
    said = text(replace(SITUATION, event=SUM, buffered=True))
    assert (
        f"server ε {forecast_server(SUM, 30, 300**-1.1):.3g} for a member that is done as often as can be"
        in said
    )


def test_the_epsilon_for_an_example_is_said_with_its_own_neighbours_and_against_whom() -> None:
    section = DpSgd(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1)
    event = section.event(1)
    said = text(replace(SITUATION, training=section, example_event=event))
    assert "zero-out of one example of one client" in said
    assert f"ε {example_epsilon(event, 1, 1e-5):.3g} for one participation" in said
    assert f"{example_epsilon(event, 17, 1e-5):.3g} for 17, about the most of any member in 30 rounds" in said
    assert "the coordinator included" in said
    alone = text(
        replace(SITUATION, event=None, delta=None, training=section, example_event=event, protocol="none")
    )
    assert "Of a member as a whole nothing" in alone
    assert "possibly single examples" not in alone
    assert f"by ε {example_epsilon(event, 1, 1e-5):.3g} if it took part once" in alone
    assert "Nothing is claimed for single examples" in text(SITUATION)


def test_without_a_mechanism_nothing_is_claimed() -> None:
    said = text(replace(SITUATION, event=None, delta=None, budget=None, protocol="none"))
    assert "No privacy is claimed" in said
    assert "sees every single update" in said
    assert "ε" not in said


def test_noise_is_said_to_be_where_it_is() -> None:
    """Whose noise it is, and what the coordinator sees."""
    shape = SumShape(VectorSpec((Vector("delta", 650),)), BOUNDS, 32)
    local = LocalGaussian(clip_norm=0.5, noise_multiplier=2.0).event(shape)
    said = text(replace(SITUATION, event=local, protocol="none", threat_model="none"))
    assert "needs nobody else's" in said
    assert f"server ε {forecast_server(local, 17, 300**-1.1):.3g}" in said
    assert "Every update, with the noise of the member that sent it." in said
    central = CentralGaussian(clip_norm=0.5, noise_multiplier=2.0).event(shape)
    said = text(replace(SITUATION, event=central, protocol="none", threat_model="none"))
    assert "nothing is claimed, it sees single updates without noise" in said
    assert "possibly single examples" in said
    said = text(replace(SITUATION, event=central))
    assert "nothing is claimed, it sees sums without noise" in said
    skellam = DistributedSkellam(clip_norm=0.5, noise_multiplier=2.0).event(shape)
    said = text(replace(SITUATION, event=skellam))
    assert f"released ε {forecast(skellam, 30, 300**-1.1):.3g} after 30 rounds (without" in said


def test_laplace_noise_has_its_own_norm_and_needs_no_delta() -> None:
    shape = SumShape(VectorSpec((Vector("delta", 10),)), BOUNDS, 32)
    laplace = CentralLaplace(clip_norm=1.0, noise_multiplier=2.0).event(shape)
    said = text(replace(SITUATION, event=laplace, rounds=1, clip_norm=1.0))
    assert "a sum of sizes (L1) of 1 at most" in said
    assert "One participation is worth 0.5 at δ 0" in said
    assert "nothing is claimed, it sees sums without noise" in said
    assert "a length (L2) of 0.5 at most" in text(SITUATION)


def test_a_clip_norm_that_moves_is_said_to_move() -> None:
    assert "follow the share of updates" in text(replace(SITUATION, adaptive=True))
    assert "follow the share of updates" not in text(SITUATION)


def test_what_is_kept_of_a_member_that_withdraws_is_said_with_its_bound() -> None:
    shape = SumShape(VectorSpec((Vector("delta", 650),)), BOUNDS, 32)
    assert f"its own participations cost: {forecast_server(EVENT, 1, 300**-1.1):.3g}" in text(SITUATION)
    central = CentralGaussian(clip_norm=0.5, noise_multiplier=2.0).event(shape)
    said = text(replace(SITUATION, event=central))
    assert "bounded by the released ε above" in said
    assert "Against the coordinator nothing is bounded" in said
    open_ = text(replace(SITUATION, event=None, delta=None, budget=None, protocol="none"))
    assert "trained anew" in open_


def test_a_version_says_what_it_keeps_of_a_member_that_withdraws() -> None:
    said = kept_after_withdrawal(Epsilons(2.956, 5.27, 300**-1.1))
    assert "ε 2.96 for those who see versions, and ε 5.27 for the coordinator, at δ 0.00188." in said
    assert "nothing for the coordinator" in kept_after_withdrawal(Epsilons(2.956, math.inf, 1e-5))
    assert "protects nobody" in kept_after_withdrawal(Epsilons(2.956, 5.27, 1e-5, simulated=True))
    assert "trained anew" in kept_after_withdrawal(None)


def test_a_seed_is_said_to_protect_nobody() -> None:
    assert "protects nobody" in text(replace(SITUATION, seeded=True))
    assert "protects nobody" not in text(SITUATION)


def test_the_most_frequent_member_is_that_of_a_binomial_draw() -> None:
    assert most_participations(30, 1 / 3, 300) == 17
    assert most_participations(30, 1.0, 300) == 30
    assert most_participations(1, 0.001, 10) == 0
    assert most_participations(1000, 0.01, 10_000) == 24
