"""Several seeds of one or several recipes, and how sure the differences between them are.

plan     which recipes under which seeds, and the folder that keeps it
results  what the finished runs came to: means, deviations, differences by seed, costs
printed  the accuracies that the papers print for recipes
run      carries it out
"""

from __future__ import annotations

from leanconv.recipes.study.plan import StudyPlan
from leanconv.recipes.study.run import study

__all__ = ["StudyPlan", "study"]
