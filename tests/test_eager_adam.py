"""The optimiser that imports no torch.compile is torch's own to the bit; what it imports: test_train.py."""

import torch

from vae.training.eager_adam import EagerAdam


def trained(kind: type[torch.optim.Adam]) -> tuple[torch.nn.Module, torch.optim.Adam]:
    """A layer after three steps, the last one by an optimiser that was brought back from its saved state."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    optimizer = kind(layer.parameters(), lr=0.1, fused=True)
    for step in range(3):
        if step == 2:
            saved, optimizer = optimizer.state_dict(), kind(layer.parameters(), lr=0.1, fused=True)
            optimizer.load_state_dict(saved)
        layer(torch.full((2, 5), step + 1.0)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


def test_its_steps_and_its_state_are_those_of_torch() -> None:
    (layer, optimizer), (own_layer, own) = trained(torch.optim.Adam), trained(EagerAdam)
    for values, own_values in zip(layer.parameters(), own_layer.parameters(), strict=True):
        assert torch.equal(values, own_values)
        assert own_values.requires_grad
        assert own_values.grad is None
    expected, state = optimizer.state_dict(), own.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    assert str(state["state"]) == str(expected["state"])


def test_hooks_around_a_step_are_called() -> None:
    layer = torch.nn.Linear(1, 1)
    optimizer, seen = EagerAdam(layer.parameters()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert seen == ["before", "after"]
