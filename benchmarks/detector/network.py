"""The detector in PyTorch, and its losses: of digits' ink, of the way to a digit's middle, of middles, sizes, values."""

import torch, torch.nn as nn, torch.nn.functional as F

UNIT, REACH = 24.0, 16.0


def block(i, o, k=3, s=1, d=1):
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, padding=d * (k // 2), dilation=d, bias=False),
        nn.BatchNorm2d(o, eps=1e-3, momentum=0.03),
        nn.ReLU(inplace=True),
    )


class Net(nn.Module):
    def __init__(self, w=1.0, deep=False):
        super().__init__()
        c = lambda n: int(round(n * w / 4) * 4)
        self.fine = nn.Sequential(block(1, c(16), s=2), block(c(16), c(24)))
        body = [block(c(24), c(40), s=2), block(c(40), c(40)), block(c(40), c(40), d=2), block(c(40), c(40), d=4)]
        body += [block(c(40), c(40), d=8)]
        if deep:
            body += [block(c(40), c(40), d=4), block(c(40), c(40), d=2)]
        self.body = nn.Sequential(*body, block(c(40), c(40)))
        self.middles = nn.Conv2d(c(40), 13, 1)
        self.reduce = block(c(40), c(24), k=1)
        self.last = block(c(24) * 2, c(24))
        self.pixels = nn.Conv2d(c(24), 3, 1)
        with torch.no_grad():
            self.middles.bias.zero_()
            self.middles.bias[0] = -3

    def forward(self, x):
        fine = self.fine(x)
        x = self.body(fine)
        up = F.interpolate(self.reduce(x), scale_factor=2, mode="nearest")
        return self.pixels(self.last(torch.cat([up, fine], 1))).float(), self.middles(x).float()


def losses(net, b, augment=True, gen=None):
    seen, digit, way, middle, either, size, kind = b
    x = (seen.float() - 128) / 48
    n = len(x)
    if augment:
        gain = torch.empty(n, 1, 1, device=x.device).uniform_(0.55, 1.35) * torch.where(
            torch.rand(n, 1, 1, device=x.device) < 0.4, -1.0, 1.0
        )
        noise = torch.empty(n, 1, 1, device=x.device).uniform_(0, 0.12) ** 1.5
        x = x * gain + torch.randn_like(x) * noise
    pixels, mid = net(x[:, None].contiguous(memory_format=torch.channels_last))
    ink = 1.0
    d = (digit == 1).float()
    known = (digit != 2).float()
    near = F.max_pool2d(d[:, None], 7, 1, 3)[:, 0]
    rim = F.max_pool2d(d[:, None], 3, 1, 1)[:, 0] - d
    weight = (0.25 + 0.75 * near) * known * (1 - 0.7 * rim)
    l1 = (F.binary_cross_entropy_with_logits(pixels[:, 0], d, reduction="none") * weight).sum() / weight.sum()
    w = way.float().permute(0, 3, 1, 2) / (2 * REACH)
    l2 = ((pixels[:, 1:] - w).abs() * d[:, None]).sum() / (d.sum() + 1)
    hill = middle.float() / 255
    logit = mid[:, 0]
    allowed = 1 - either.float()
    top = (hill > 0.99).float()
    p = torch.sigmoid(logit)
    right = (1 - p) ** 2 * F.logsigmoid(logit) * top
    wrong = (1 - hill) ** 4 * p**2 * F.logsigmoid(-logit) * (1 - top) * allowed
    l3 = -(right.sum() + wrong.sum()) / (top.sum() + 1)
    nr = (kind > 0).float() * allowed
    s = size.float().permute(0, 3, 1, 2)
    l4 = ((mid[:, 1:3] - s).abs() * nr[:, None]).sum() / (nr.sum() + 1)
    ce = F.cross_entropy(mid[:, 3:], (kind.long() - 1).clamp(min=0), reduction="none", label_smoothing=0.05)
    l5 = (ce * nr).sum() / (nr.sum() + 1)
    return torch.stack([l1, l2, l3, l4, l5])


WEIGHTS = (1.0, 1.0, 0.5, 0.5, 0.3)
