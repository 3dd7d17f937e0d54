"""The linear head: the estimator, and many settings trained in one pass."""

from pipeline.heads.linear.head import LinearHead as LinearHead
