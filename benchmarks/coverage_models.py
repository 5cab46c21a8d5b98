"""What the coverage sweep tries: one small model per family of torchvision and timm, and graphs made up here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

TORCHVISION = [
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "googlenet",
    "resnet18",
    "resnext50_32x4d",
    "densenet121",
    "inception_v3",
    "efficientnet_v2_s",
    "swin_t",
    "swin_v2_t",
    "convnext_tiny",
    "maxvit_t",
    "wide_resnet50_2",
    "vit_b_32",
    "alexnet",
    "vgg11_bn",
]
"""One per family of classification models, lightest first."""

TIMM = [
    "starnet_s050",
    "dla46x_c",
    "lcnet_035",
    "mobilevit_xxs",
    "edgenext_xx_small",
    "ese_vovnet19b_slim_dw",
    "repghostnet_050",
    "efficientvit_m0",
    "ghostnet_050",
    "regnetx_002",
    "cspnext_tiny",
    "iformer_t",
    "xcit_nano_12_p8_224",
    "resnet18",
    "efficientvit_b0",
    "swiftformer_xs",
    "efficientformerv2_s0",
    "pvt_v2_b0",
    "convnext_atto_rms",
    "fasternet_t0",
    "lcnetv2_small",
    "inception_next_atto",
    "cs3darknet_focus_s",
    "rexnet_100",
    "mobileone_s1",
    "pit_ti_224",
    "hardcorenas_b",
    "fastvit_t8",
    "efficientnet_b0",
    "repvit_m1",
    "coat_tiny",
    "eva02_tiny_patch14_224",
    "convit_tiny",
    "mixer_s32_224",
    "hgnetv2_b0",
    "shvit_s1",
    "cpubone_nano",
    "efficientvim_m1",
    "mambaout_femto",
    "levit_128s",
    "densenet121",
    "crossvit_tiny_240",
    "dpn48b",
    "visformer_tiny",
    "halonet_h1",
    "resnest14d",
    "resnetv2_18",
    "legacy_seresnet18",
    "poolformer_s12",
    "cait_xxs24_224",
    "skresnet18",
    "gcvit_xxtiny",
    "tiny_vit_5m_224",
    "efficientformer_l1",
    "hrnet_w18_small",
    "coatnet_nano_cc_224",
    "lowformer_b0",
    "nf_ecaresnet26",
    "nest_tiny",
    "convmixer_768_32",
    "vit_relpos_small_patch16_rpn_224",
    "deit3_small_patch16_224",
    "vitamin_small_224",
    "tnt_s_legacy_patch16_224",
    "rdnet_tiny",
    "twins_svt_small",
    "mvitv2_tiny",
    "res2next50",
    "volo_d1_224",
    "sequencer2d_s",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
    "davit_tiny",
    "focalnet_tiny_srf",
    "selecsls42",
    "tresnet_m",
    "nextvit_small",
    "vit_small_r26_s32_224",
    "swinv2_tiny_window16_256",
    "legacy_xception",
    "inception_v3",
    "hieradet_small",
    "xception41p",
    "swinv2_cr_small_224",
    "csatv2",
    "inception_v4",
    "samvit_base_patch16_224",
    "beit_base_patch16_224",
    "inception_resnet_v2",
    "mobilenetv5_base",
    "vgg11",
    "pnasnet5large",
    "nasnetalarge",
    "naflexvit_base_patch16_gap",
    "vit_tiny_patch16_224",
    "qwen3_vit_88m",
    "gemma4_vit_167m",
    "deepseek_vit_412m",
    "gmlp_ti16_224",
    "resmlp_12_224",
    "maxvit_nano_rw_256",
    "coatnext_nano_rw_224",
    "maxxvit_rmlp_nano_rw_256",
    "caformer_s18",
    "vit_base_patch32_clip_224",
    "mobilenetv3_small_050",
    "tf_efficientnetv2_b0",
    "regnetz_b16",
    "resnet50d",
    "seresnext26t_32x4d",
    "lambda_resnet26t",
    "botnet26t_256",
    "eca_nfnet_l0",
    "skresnext50_32x4d",
]
"""One per module of timm (each a family), lightest first, then some of another kind."""


def made_up() -> Iterator[tuple[str, nn.Module, tuple[torch.Tensor, ...]]]:
    """Graphs as detectors and segmenters have them: several outputs, skips, pyramids, two inputs."""
    picture = torch.zeros(2, 3, 128, 128)
    yield "feature pyramid", FeaturePyramid(), (picture,)
    yield "u-net", UNet(), (picture,)
    yield "detector, two scales", Detector(), (picture,)
    yield "segmenter with dilated branches", Dilated(), (picture,)
    yield "two heads", TwoHeads(), (picture,)
    yield "two inputs", TwoInputs(), (picture, picture)
    yield "inception blocks", Inception(), (picture,)
    yield "densely connected", Dense(), (picture,)


def block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Backbone(nn.Module):
    """Four stages at strides 2, 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 24, 32, 48)
        self.stages = nn.ModuleList(nn.Sequential(block(a, b, 2), block(b, b)) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class FeaturePyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.lateral = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in (24, 32, 48))
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        low, middle, high = (f(t) for f, t in zip(self.lateral, self.backbone(x)[1:], strict=True))
        middle = middle + nn.functional.interpolate(high, scale_factor=2.0, mode="nearest")
        low = low + nn.functional.interpolate(middle, scale_factor=2.0, mode="nearest")
        return tuple(f(t) for f, t in zip(self.smooth, (low, middle, high), strict=True))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in ((48, 32), (32, 24), (24, 16)))
        self.join = nn.ModuleList(block(2 * c, c) for c in (32, 24, 16))
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *skips, x = self.backbone(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        out: torch.Tensor = self.last(x).argmax(1)
        return out


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * 9, 1) for c in (32, 48))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for head, features in zip(self.heads, self.backbone(x)[2:], strict=True):
            rows.append(head(features).reshape(x.shape[0], 3, 9, -1).permute(0, 1, 3, 2).reshape(x.shape[0], -1, 9))
        found = torch.cat(rows, 1)
        return found[..., :4], found[..., 4:].sigmoid()


class Dilated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.branches = nn.ModuleList(block(48, 16, dilation=d) for d in (1, 2, 4))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 16, 1), nn.ReLU())
        self.last = nn.Conv2d(64, 7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deep = self.backbone(x)[-1]
        pooled = self.pooled(deep).expand(-1, -1, deep.shape[2], deep.shape[3])
        joined = torch.cat([*(branch(deep) for branch in self.branches), pooled], 1)
        return nn.functional.interpolate(self.last(joined), size=x.shape[2:], mode="bilinear", align_corners=False)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classes = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
        self.depth = nn.Sequential(block(48, 24), nn.Conv2d(24, 1, 1), nn.Softplus())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deep = self.backbone(x)[-1]
        return self.classes(deep).softmax(1), self.depth(deep)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.last = nn.Linear(96, 6)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        pair = [self.backbone(x)[-1].mean((2, 3)) for x in (left, right)]
        out: torch.Tensor = self.last(torch.cat(pair, 1))
        return out


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, 4)
        self.branches = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(16, 4, 1), block(16, 4), nn.Sequential(block(16, 4), block(4, 8))])
            for _ in range(3)
        )
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branches in self.branches:
            x = torch.cat([branch(x) for branch in branches], 1)
        out: torch.Tensor = self.last(x.mean((2, 3)))
        return out


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8, 4)
        self.layers = nn.ModuleList(block(8 * (i + 1), 8) for i in range(6))
        self.last = nn.Linear(56, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        out: torch.Tensor = self.last(torch.cat(found, 1).mean((2, 3)))
        return out
