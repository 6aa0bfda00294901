"""The errors of runs without an env, on episodes that were kept back: what they are called, and what they are."""

COLUMNS = {
    "bellman_error/off": "Bellman error",
    "return_error/off": "return error",
    "action_error": "action error",
    "bellman_error/fitted": "Bellman error (fitted Q)",
    "return_error/fitted": "return error (fitted Q)",
    "fitted_q": "fitted Q of the policy",
    "fitted_q_logged": "of the logged actions",
}
"""Name of a number in metrics.jsonl -> the head of its column."""


SMALL_PRINT = (
    "There was no env: nothing was rolled out, no return was measured, and none of these numbers is a score.",
    "They are root mean squares and means over the rows of episodes that were kept back from training, in training "
    "rewards (actions: in units from -1 to 1), at the end of the run.",
    "The Bellman error is of r + gamma Q(s', pi(s')) - Q(s, a); the return error of Q(s, a) less the discounted return "
    "that followed in the log, with the critic's own value where the episode was cut.",
    "Fitted-Q evaluation trains a new Q-function for the policy on the training rows: its value of the policy at the "
    "first steps of the episodes stands beside that of the logged actions. Both rest on the logs: where the policy "
    "acts as nobody in them did, neither is evidence.",
)
"""How the numbers are computed, one or two sentences each."""
