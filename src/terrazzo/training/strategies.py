"""How several processes share the work: Lightning's strategies, fitted to these batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch.distributed.fsdp import MixedPrecision

from terrazzo.training.config import RunConfig


class WholeInputs(FSDPPrecision):
    """FSDP's precision for weights and gradients, with batches left as they are.

    Lightning's own refuses frozen dataclasses, and rounds batches to bfloat16: distances and counts need all digits.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the batch."""
        return data

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        """What FSDP is told; autocast casts where it does no harm."""
        return replace(super().mixed_precision_config, cast_root_forward_inputs=False)


def make_strategy(run: RunConfig) -> str | Strategy:
    """Return Lightning's strategy: one process, DDP, or FSDP."""
    if run.strategy == "fsdp":
        return FSDPStrategy(state_dict_type="full", precision_plugin=WholeInputs(run.precision))
    if run.strategy == "ddp" or run.devices != 1 or run.nodes > 1:  # -1: all there are
        return DDPStrategy(find_unused_parameters=True)  # a frozen encoder, a head whose weight is 0
    return "auto"
