"""The head of tasks and of fine-tuning."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from terrazzo.errors import ConfigError
from terrazzo.tasks.mlp import LabelHead


@pytest.mark.parametrize(("name", "activation"), [("leaky_relu", F.leaky_relu), ("relu", F.relu)])
def test_head_is_the_plain_sum(name, activation):
    torch.manual_seed(0)
    head = LabelHead(7, 4, (6, 5), name)
    linear = [step for step in head.layers if isinstance(step, torch.nn.Linear)]
    x = torch.randn(11, 7)
    y = x
    for i, layer in enumerate(linear):
        y = y @ layer.weight.T + layer.bias
        y = activation(y) if i < 2 else y
    assert len(linear) == 3
    torch.testing.assert_close(head(x), y)


def test_the_papers_heads_have_their_layers():
    def shapes(head):
        return [
            tuple(step.weight.shape) for step in head.layers if isinstance(step, torch.nn.Linear)
        ]

    assert shapes(LabelHead(192, 7)) == [(256, 192), (256, 256), (7, 256)]
    assert shapes(LabelHead(64, 7, (512, 256, 128), "relu")) == [
        (512, 64),
        (256, 512),
        (128, 256),
        (7, 128),
    ]
    assert shapes(LabelHead(64, 7, ())) == [(7, 64)]


def test_dropout_is_for_training_only():
    head = LabelHead(8, 2, dropout=0.5)
    x = torch.randn(5, 8)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "at least 1"),
        ((3, 2, (0,)), "at least 1"),
        ((3, 2, (4,), "tanh"), "leaky_relu, relu"),
        ((3, 2, (4,), "relu", 1.0), "dropout"),
    ],
)
def test_impossible_heads_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LabelHead(*arguments)
