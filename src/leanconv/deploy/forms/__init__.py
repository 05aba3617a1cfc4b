"""The equal ways to compute a network, and the fastest of them on the machine at hand, found by measuring.

    stages      layer by layer, as it was made
    composed    every chain with nothing between its stages as the one dense convolution that it equals
    merged      every stage of a chain in fewer and wider groups, zeros where it has no weights
    kernel      leanconv's own GPU kernels: channelwise convolutions, and chains in one pass
    padded      beside any of them: all channel counts filled up to a multiple

In training the parameters stay those of the network, under their names; nothing that reads, saves or averages them
notices. For inference kernels are composed and filled up once.
"""

from __future__ import annotations

from leanconv.deploy.forms.apply import FORMS, Form, in_form

__all__ = ["FORMS", "Form", "in_form"]
