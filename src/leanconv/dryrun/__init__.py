"""One run of any model without computing: shapes, order and connections, on a copy, whatever the forward does.

    dry = DryRun(model, (3, 224, 224))           a copy whose tensors have shapes and no values
    dry.stack.on_leave.append(look)              look(name, module, args, kwargs, output) after every module
    ran = dry.run(*modes)                        torch modes that watch functions or operators
    ran.shapes, ran.calls                        of the outputs; how often each module ran, in order

Cost, rewrites and elastic networks all look at a model in this way, and what cannot be followed gets one text, that of
`failures`. The caller chooses the class of the error.
"""

from __future__ import annotations

from leanconv.dryrun.copies import duplicate, fake_copy
from leanconv.dryrun.detector import (
    body_name,
    classes_of,
    detector_in,
    image_size,
    in_evaluation,
    is_detector,
    refuse_one_stage,
    seen_as,
)
from leanconv.dryrun.failures import check_higher_order, failure, one_line, place_of, quiet
from leanconv.dryrun.flow import Call, Flow, Value, record_flow
from leanconv.dryrun.run import DryRun, Ran, as_written, running
from leanconv.dryrun.size import (
    Size,
    Sizes,
    arguments,
    check_size,
    check_sizes,
    default_size,
    each_shape,
    fake_input,
    shapes_of,
)
from leanconv.dryrun.stack import ModuleStack
from leanconv.dryrun.wrappers import ModelHolder, as_module, refuse_unfollowable, refuse_wrapped, unwrapped

__all__ = [
    "Call",
    "DryRun",
    "Flow",
    "ModelHolder",
    "ModuleStack",
    "Ran",
    "Size",
    "Sizes",
    "Value",
    "arguments",
    "as_module",
    "as_written",
    "body_name",
    "check_higher_order",
    "check_size",
    "check_sizes",
    "classes_of",
    "default_size",
    "detector_in",
    "duplicate",
    "each_shape",
    "failure",
    "fake_copy",
    "fake_input",
    "image_size",
    "in_evaluation",
    "is_detector",
    "one_line",
    "place_of",
    "quiet",
    "record_flow",
    "refuse_one_stage",
    "refuse_unfollowable",
    "refuse_wrapped",
    "running",
    "seen_as",
    "shapes_of",
    "unwrapped",
]
