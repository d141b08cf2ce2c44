"""bfloat16 layers on processors without bfloat16 units: the values of bfloat16, in float32's time."""

import pytest
import torch
import torch.nn.functional as F

from mglmm.precision import ThroughFloat32

LAYERS = {
    "linear": lambda x, w, b: F.linear(x, w, b),
    "convolution": lambda x, w, b: F.conv2d(x[:, :, None, None], w[:, :, None, None], b).flatten(1),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_sums_in_float32_are_rounded_once(layer):
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for shape in ((5, 300), (7, 300), (7,))]
    with ThroughFloat32():
        found = LAYERS[layer](*inputs)
        assert F.relu(inputs[0]).dtype == torch.bfloat16
        assert LAYERS[layer](*(each.double() for each in inputs)).dtype == torch.float64
    exact = LAYERS[layer](*(each.detach().double() for each in inputs))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)  # half a place of bfloat16
    found.sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.bfloat16 for each in inputs)
