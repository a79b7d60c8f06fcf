"""The architectures of kwspot in PyTorch, layer by layer, for `.ci/throughput.py`; no part of the package.

Features come as (batch, 1, frames, bins), channels first. BC-ResNet turns frames and bins, as its authors' code does: the groups of
bins of its sub-spectral normalisation are then neighbours of the channels, and cutting them moves nothing.
"""
import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    "A path and another one around it, added, then an activation."
    def __init__(self, path, around=None, after=None):
        super().__init__()
        self.path, self.around, self.after = path, around or nn.Identity(), after or nn.Identity()

    def forward(self, x): return self.after(self.path(x) + self.around(x))


class Apply(nn.Module):
    "A function as a module."
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x): return self.function(x)


def norm(channels, dimensions, activation=nn.ReLU):
    "Batch normalisation and an activation, as `modelling.normalised`."
    batch_norm = nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
    return [batch_norm(channels), *([activation()] if activation else [])]


def conv(inside, outside, kernel, *, stride=1, dilation=1, groups=1):
    "A convolution over frames without bias that keeps the length."
    return nn.Conv1d(inside, outside, kernel, stride=stride, dilation=dilation, groups=groups, bias=False,
                     padding=(kernel - 1) * dilation // 2)


def as_sequence(): return Apply(lambda x: x[:, 0].transpose(1, 2).contiguous())


def mean(*axes): return Apply(lambda x: x.mean(axes))


def reference(n_classes, frames, bins):
    layers, inside = [nn.BatchNorm2d(1, eps=1e-3, momentum=0.01)], 1
    for outside, kernel, n in ((8, 2, 2), (16, 3, 2), (32, 3, 1)):
        for _ in range(n):
            layers += [nn.Conv2d(inside, outside, kernel), nn.ReLU()]
            inside = outside
        layers += [nn.MaxPool2d(2), nn.Dropout(0.2)]
    layers += [nn.Flatten()]
    for inside in (2240, 128): layers += [nn.Linear(inside, 128), nn.ReLU(), nn.BatchNorm1d(128, eps=1e-3, momentum=0.01)]
    return nn.Sequential(*layers, nn.Linear(128, n_classes))


def tc_resnet(n_classes, frames, bins, channels):
    layers, inside = [as_sequence(), conv(bins, channels[0], 3), *norm(channels[0], 1)], channels[0]
    for outside in channels[1:]:
        stride = 1 if inside == outside else 2
        path = nn.Sequential(conv(inside, outside, 9, stride=stride), *norm(outside, 1), conv(outside, outside, 9),
                             *norm(outside, 1, None))
        around = None if stride == 1 else nn.Sequential(conv(inside, outside, 1, stride=2), *norm(outside, 1))
        layers, inside = [*layers, Residual(path, around, nn.ReLU())], outside
    return nn.Sequential(*layers, mean(2), nn.Dropout(0.5), nn.Linear(inside, n_classes))


def ds_cnn(n_classes, frames, bins):
    layers = [nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1)), *norm(64, 2), nn.Dropout(0.2)]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, padding=1, groups=64), *norm(64, 2), nn.Conv2d(64, 64, 1), *norm(64, 2)]
    return nn.Sequential(*layers, nn.Dropout(0.4), mean(2, 3), nn.Linear(64, n_classes))


def matchboxnet(n_classes, frames, bins, repeat):
    def separable(inside, outside, kernel, dilation=1):
        return [conv(inside, inside, kernel, dilation=dilation, groups=inside), conv(inside, outside, 1), *norm(outside, 1, None)]
    layers, inside = [as_sequence(), *separable(bins, 128, 11), nn.ReLU()], 128
    for kernel in (13, 15, 17):
        path, width = [], inside
        for number in range(repeat):
            path += separable(width, 64, kernel) + ([nn.ReLU(), nn.Dropout(0.1)] if number < repeat - 1 else [])
            width = 64
        around = nn.Sequential(conv(inside, 64, 1), *norm(64, 1, None))
        layers, inside = [*layers, Residual(nn.Sequential(*path), around, nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))], 64
    layers += [*separable(64, 128, 29, dilation=2), nn.ReLU(), conv(128, 128, 1), *norm(128, 1)]
    return nn.Sequential(*layers, mean(2), nn.Linear(128, n_classes))


class SubSpectralNorm(nn.Module):
    "Batch normalisation for each channel and group of neighbouring bins of (batch, channels, bins, frames)."
    def __init__(self, channels, groups=5):
        super().__init__()
        self.groups, self.norm = groups, nn.BatchNorm2d(channels * groups)

    def forward(self, x):
        n, channels, bins, frames = x.shape
        return self.norm(x.reshape(n, channels * self.groups, bins // self.groups, frames)).reshape(x.shape)


class BroadcastBlock(nn.Module):
    "The block of BC-ResNet on (batch, channels, bins, frames)."
    def __init__(self, inside, channels, *, step, dilation):
        super().__init__()
        self.normal = inside == channels
        enter = [] if self.normal else [nn.Conv2d(inside, channels, 1, bias=False), *norm(channels, 2)]
        over_bins = nn.Conv2d(channels, channels, (3, 1), stride=(step, 1), padding=(1, 0), groups=channels, bias=False)
        self.picture = nn.Sequential(*enter, over_bins, SubSpectralNorm(channels))
        over_frames = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=channels, bias=False)
        self.sequence = nn.Sequential(over_frames, *norm(channels, 2, nn.SiLU), nn.Conv2d(channels, channels, 1, bias=False),
                                      nn.Dropout2d(0.1))

    def forward(self, x):
        picture = self.picture(x)
        answer = picture + self.sequence(picture.mean(2, keepdim=True))
        return functional.relu(answer + x if self.normal else answer)


def bc_resnet(n_classes, frames, bins, width):
    base, inside = 8 * width, 16 * width
    layers = [Apply(lambda x: x.transpose(2, 3)), nn.Conv2d(1, inside, 5, stride=(2, 1), padding=2, bias=False), *norm(inside, 2)]
    for stage, (blocks, factor, step) in enumerate(((2, 1, 1), (2, 1.5, 2), (4, 2, 2), (4, 2.5, 1))):
        for number in range(blocks):
            layers.append(BroadcastBlock(inside, int(factor * base), step=1 if number else step, dilation=2 ** stage))
            inside = int(factor * base)
    layers += [nn.Conv2d(inside, inside, 5, padding=(0, 2), groups=inside, bias=False)]
    layers += [nn.Conv2d(inside, 4 * base, 1, bias=False), *norm(4 * base, 2)]
    return nn.Sequential(*layers, mean(2, 3), nn.Linear(4 * base, n_classes))


class Attention(nn.Module):
    "Scaled dot-product attention by PyTorch's own operation."
    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x):
        n, frames, channels = x.shape
        parts = x.reshape(n, frames, 3, self.heads, channels // 3 // self.heads).permute(2, 0, 3, 1, 4)
        answers = functional.scaled_dot_product_attention(*parts)
        return answers.transpose(1, 2).reshape(n, frames, channels // 3)


class ClassToken(nn.Module):
    "A learnt frame in front, and a learnt position added to every frame."
    def __init__(self, frames, channels):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, frames + 1, channels) * 0.02)

    def forward(self, x): return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions


def kwt(n_classes, frames, bins, heads):
    channels = 64 * heads
    layers = [Apply(lambda x: x[:, 0]), nn.Linear(bins, channels), ClassToken(frames, channels)]
    for _ in range(12):
        attention = nn.Sequential(nn.Linear(channels, 3 * channels, bias=False), Attention(heads), nn.Linear(channels, channels))
        dense = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        layers += [Residual(attention, after=nn.LayerNorm(channels)), Residual(dense, after=nn.LayerNorm(channels))]
    return nn.Sequential(*layers, Apply(lambda x: x[:, 0]), nn.Linear(channels, n_classes))


def kwspot(n_classes, frames, bins, trunk):
    def conv_2d(inside, outside, kernel, stride=(1, 1)):
        return nn.Conv2d(inside, outside, kernel, stride=stride, padding=(kernel[0] // 2, kernel[1] // 2), bias=False)
    path = nn.Sequential(conv_2d(24, 32, (3, 3), (2, 2)), *norm(32, 2), conv_2d(32, 32, (3, 3)), *norm(32, 2, None))
    around = nn.Sequential(conv_2d(24, 32, (1, 1), (2, 2)), *norm(32, 2, None))
    layers = [Apply(lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / 2.5), conv_2d(1, 24, (5, 7), (2, 4)), *norm(24, 2),
              Residual(path, around, nn.ReLU()), Apply(lambda x: x.transpose(2, 3).flatten(1, 2))]
    layers, inside = [*layers, conv(32 * (bins // 8), trunk[0], 1), *norm(trunk[0], 1)], trunk[0]
    for width in trunk:
        path = nn.Sequential(conv(inside, width, 7), *norm(width, 1), conv(width, width, 7), *norm(width, 1, None))
        around = None if inside == width else nn.Sequential(conv(inside, width, 1), *norm(width, 1, None))
        layers, inside = [*layers, Residual(path, around, nn.ReLU())], width
    return nn.Sequential(*layers, mean(2), nn.Dropout(0.2), nn.Linear(inside, n_classes))


FAMILIES = {
    'reference': (reference, {}), 'ds-cnn': (ds_cnn, {}),
    **{f'tc-resnet-{name}': (tc_resnet, {'channels': channels}) for name, channels in {
        '8': (16, 24, 32, 48), '8-1.5': (24, 36, 48, 72), '14': (16, 24, 24, 32, 32, 48, 48),
        '14-1.5': (24, 36, 36, 48, 48, 72, 72)}.items()},
    **{f'matchboxnet-3x{repeat}x64': (matchboxnet, {'repeat': repeat}) for repeat in (1, 2)},
    **{f'bc-resnet-{width}': (bc_resnet, {'width': width}) for width in (1, 2, 3, 6, 8)},
    **{f'kwt-{heads}': (kwt, {'heads': heads}) for heads in (1, 2, 3)},
    'kwspot-s': (kwspot, {'trunk': (48, 48)}), 'kwspot-l': (kwspot, {'trunk': (80, 80)})}


def build(name, n_classes, shape):
    "The network `name` of `kwspot.modelling` for features of `shape` frames by bins: logits out."
    function, options = FAMILIES[name]
    return function(n_classes, *shape, **options)


def count(network):
    "Parameters as Keras counts them, the moving averages among them."
    averages = [value for value in network.buffers() if value.is_floating_point()]
    return sum(value.numel() for value in [*network.parameters(), *averages])
