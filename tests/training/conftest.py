import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small train faster so, many times where other processes need the cores: threads wait for threads."""
    torch.set_num_threads(1)
