"""Image networks made ones for clips: `step` has the idea, `layers` the 3D form of every layer, `frames` what is done
where a forward speaks of the two axes of an image, `proof` the comparison that decides."""

from leanconv.rewrites.inflate.layers import inflated_kernel
from leanconv.rewrites.inflate.step import Inflate

__all__ = ["Inflate", "inflated_kernel"]
