"""Hecate: train Mixture-of-Experts models with fully sharded sparse data parallelism."""
