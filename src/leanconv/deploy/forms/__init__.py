"""The equal ways to compute a network, and the fastest of them on the machine at hand, found by measuring.

    stages      layer by layer, as it was made
    composed    every chain with nothing between its stages as the one dense convolution that it equals
    merged      every stage of a chain in fewer and wider groups, zeros where it has no weights
    kernel      leanconv's own GPU kernels: channelwise convolutions; for inference octave convolutions, and chains in
                one pass where that has less than .6 of the products, and everything else as in "fused"
    fused       for inference: chains composed, and every convolution in one kernel with its residual sum and its ReLU
    library     leanconv's C library, on a CPU in float32: for training chains and grouped convolutions, forward and
                backward; for inference every piece of the network that gains by it, as `accelerate` makes it

Beside any but the last all channel counts can be filled up to a multiple, which the matrix units of GPUs want.

For onnxruntime and openvino, `octave_forms` finds how octave convolutions are to be summed there.

In training the parameters stay those of the network, under their names; nothing that reads, saves or averages them
notices. For inference kernels are composed and filled up once.
"""

from __future__ import annotations

from leanconv.deploy.forms.apply import FORMS, Form, in_form
from leanconv.deploy.forms.choose import Choice, Fastest, fastest
from leanconv.deploy.forms.octave_forms import OctaveForms, octave_forms

__all__ = ["FORMS", "Choice", "Fastest", "Form", "OctaveForms", "fastest", "in_form", "octave_forms"]
