"""Adam for a step that nothing compiles: made without importing torch.compile, which takes 1.6 seconds."""

from inspect import unwrap

import torch
from torch.optim import Adam


class EagerAdam(Adam):
    """torch's Adam, to the bit.

    torch decorates these methods for torch.compile, and their first call imports torch._dynamo. What they
    decorate is called as it is; a torch that decorates otherwise, or not at all, loses nothing by it.
    """

    step = torch.no_grad()(unwrap(Adam.step))  # the only other thing its decorator does
    zero_grad = unwrap(Adam.zero_grad)
    add_param_group = unwrap(Adam.add_param_group)
    state_dict = unwrap(Adam.state_dict)
    load_state_dict = unwrap(Adam.load_state_dict)
