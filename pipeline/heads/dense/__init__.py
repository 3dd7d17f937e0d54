"""The dense head: the estimator, its compiled steps, its batches and its loop over epochs."""

from pipeline.heads.dense.head import DenseHead as DenseHead
