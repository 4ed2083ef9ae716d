"""Blocks distilled one by one: each is given what the parent's block reads, and learns to give what that gives.

Formula: with o_p the parent's output of a block and o_c the student's on the same input, the loss is
`MSE(o_p, o_c) / MSE(o_p, 0)` over all tokens but padding.  Trainings do not depend on each other, so each is a folder
that any process can be given, here or on a Ray cluster.
"""

from passes._distillation.distil import Pick, distil
from passes._distillation.job import error
from passes._distillation.settings import DistilSettings
from passes._distillation.teaching import Student, teach

__all__ = ["DistilSettings", "Pick", "Student", "distil", "error", "teach"]
