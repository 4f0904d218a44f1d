"""The diffusion votes on pseudo-labels while it is right on annotated cases."""

import torch

from nnunetv2_conemos.methods.generic_ssl.voting import VotingRight

RIGHT = torch.tensor([[90.0, 6, 0], [2, 3, 0], [1, 3, 0]])  # Dice of label 1: 2/3; label 2 is nowhere
WRONG = torch.tensor([[90.0, 1, 0], [2, 9, 0], [1, 0, 0]])


def test_it_is_granted_while_the_mean_dice_of_labels_is_above_one_half():
    made = VotingRight(3)
    assert not made.granted(), "nothing is known yet"
    made.update(RIGHT)
    assert made.granted()
    made.update(torch.tensor([[90.0, 6, 0], [2, 3, 0], [1, 3, 100]]))
    assert not made.granted(), "label 2 was missed"


def test_it_is_lost_after_some_looks_not_after_one():
    made = VotingRight(3)
    for _ in range(20):
        made.update(RIGHT)
    made.update(WRONG)
    assert made.granted()
    for _ in range(20):
        made.update(WRONG)
    assert not made.granted()


def test_what_was_seen_is_in_the_state_of_the_network():
    made, other = VotingRight(3), VotingRight(3)
    made.update(RIGHT)
    other.load_state_dict(made.state_dict())
    assert other.granted()
