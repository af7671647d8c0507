"""The measured peak."""

import torch

from hecate.train.peak import measure_peak_flops


def test_the_peak_is_what_a_gemm_reaches():
    peak = measure_peak_flops(torch.device("cpu"), torch.float32, budget_s=0.05)
    assert 1e8 < peak < 1e15


def test_a_dtype_without_a_fast_kernel_does_not_take_for_ever():
    assert measure_peak_flops(torch.device("cpu"), torch.float16, budget_s=0.01) > 1e6
