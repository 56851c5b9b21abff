"""Every test starts alike: seeded, an empty parameter store, float64, one thread, validation on."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_start():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)
