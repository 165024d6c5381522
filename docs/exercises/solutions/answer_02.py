"""T1 needs every factor of W, the end token's too. T4 bounds whatever tokens there are."""

FAILS = "test_t1_weights_of_whole_sequences_are_unbiased_under_every_mask_and_every_mixture"
HOLDS = "test_t4_weights_of_at_most_1_bound_the_second_moment_of_every_token"


def without_end(tokens, mask, end):
    return mask & (tokens != end)
