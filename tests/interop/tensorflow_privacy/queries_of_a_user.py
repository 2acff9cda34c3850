"""What a user of tensorflow-privacy brings along: functions that return queries."""

import tensorflow_privacy as tfp


def gaussian(clip_norm: float = 1.0, noise_multiplier: float = 1.0) -> tfp.DPQuery:
    return tfp.GaussianSumQuery(clip_norm, clip_norm * noise_multiplier)


def normalized(clip_norm: float, noise_multiplier: float, denominator: float) -> tfp.DPQuery:
    return tfp.NormalizedQuery(gaussian(clip_norm, noise_multiplier), denominator)


def adaptive() -> tfp.DPQuery:
    return tfp.QuantileAdaptiveClipSumQuery(
        initial_l2_norm_clip=1.0,
        noise_multiplier=1.0,
        target_unclipped_quantile=0.5,
        learning_rate=0.2,
        clipped_count_stddev=0.4,
        expected_num_records=8,
    )


def without_noise() -> tfp.DPQuery:
    return tfp.NoPrivacySumQuery()


def of_whole_numbers() -> tfp.DPQuery:
    return tfp.DiscreteGaussianSumQuery(10.0, 3.0)


def no_query() -> int:
    return 3
