"""The interface of ``apex.optimizers`` in its capturable form.

As in apex, raw memory is read (a DTensor would be a wild pointer there and is refused here), the
learning rate and the step are tensors, and the step is counted by the decision of the step before.
"""

import torch
from torch.distributed.tensor import DTensor


class _Fused(torch.optim.Optimizer):
    def __init__(self, params, defaults):
        super().__init__(params, defaults)
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int)
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).clone()
            assert not any(isinstance(p, DTensor) for p in group["params"])

    @torch.no_grad()
    def step(self, closure=None, grad_scaler=None):
        for group in self.param_groups:
            counts = (self._dummy_overflow_buf != 1).to(torch.int)
            group["step"] = group["step"] + counts if "step" in group else counts * 0 + 1
            device = group["params"][0].device
            found_inf = grad_scaler._check_inf_per_device(self)[device]
            self._dummy_overflow_buf.copy_(found_inf)
            inverse = grad_scaler._get_scale_async().double().reciprocal().float()
            for p in group["params"]:
                if p.grad is None:
                    continue
                assert not isinstance(p.grad, DTensor)
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                if not self._dummy_overflow_buf:
                    self._update(p, p.grad * inverse, state, group)

    def _direction(self, p, grad, state, group):
        (beta1, beta2), t = group["betas"], group["step"].double()
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        mean, square = state["exp_avg"] / (1 - beta1**t), state["exp_avg_sq"] / (1 - beta2**t)
        return mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p


class FusedAdam(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        adam_w_mode=True,
        weight_decay=0.0,
        amsgrad=False,
        set_grad_none=True,
        capturable=False,
        master_weights=False,
    ):
        assert capturable, "the engine needs the form that can skip on the device"
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def _update(self, p, grad, state, group):
        p.sub_((group["lr"] * self._direction(p, grad, state, group)).to(p.dtype))


class FusedMixedPrecisionLamb(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        step=0,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        amsgrad=False,
        adam_w_mode=True,
        grad_averaging=True,
        max_grad_norm=1.0,
        use_nvlamb=False,
        reduced_precision_dtype=None,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm
        for group in self.param_groups:
            group["step"] = torch.tensor([step], dtype=torch.int)

    def _update(self, p, grad, state, group):
        direction = self._direction(p, grad, state, group)
        ratio = torch.tensor(1.0)
        if group["weight_decay"]:
            ratio = p.norm() / direction.norm()
        p.sub_((group["lr"] * ratio * direction).to(p.dtype))
