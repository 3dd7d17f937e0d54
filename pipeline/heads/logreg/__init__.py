"""The logistic-regression head: the estimator, and the fits of all its values of C."""

from pipeline.heads.logreg.head import LogregHead as LogregHead
