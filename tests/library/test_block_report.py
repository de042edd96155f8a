"""The report block by block: the matched strength, and the share by which outputs move."""

import math

import pytest
import torch
from torch.testing import assert_close

from bico.calibration.covariances import collect_signals
from bico.calibration.scales import Side, signal_scales
from bico.calibration.signals import Signal, signal_key
from bico.methods import METHODS, Pair
from bico.methods.strength import Strength, effect_strengths, sizes_of
from bico.models.clip.vit import ClipViT
from bico.reporting.block_report import judge_blocks
from tests.tiny import CLASSES, evidence_for, head, pictures, random_task_vector


def test_a_block_tells_its_matched_strength_and_the_share_its_outputs_move(source: ClipViT, target: ClipViT) -> None:
    method, pair = METHODS["bico"](strength=Strength.EFFECT), Pair.of(source, target)
    evidence = evidence_for(method, source, target)
    vector = method.transport(random_task_vector(source), pair, evidence)
    matched, sizes = pair.matched, {}
    for site in target.sites:
        sizes[site.name] = sizes_of(matched[site.name], Side.SOURCE, evidence), sizes_of(site, Side.TARGET, evidence)
    reports = judge_blocks("digits", target.sites, {}, target.state(), vector, 0.5, sizes)
    for report in reports:
        members = [site for site in target.sites if site.group == report.block]
        strengths = torch.tensor([effect_strengths(*sizes[site.name])[0] for site in members])
        assert report.strength == pytest.approx(float(strengths.log().mean().exp()))
        shares = []
        for site in members:
            reads, gives = sizes[site.name][1]
            update = 0.5 * site.weight.read(vector)
            # Inputs of one size that favour no direction: the standard basis of the input space, scaled.
            rows = reads.norm * torch.eye(site.shape[1], dtype=torch.float64) @ update.T
            shares.append(float(rows.square().sum(1).mean()) / gives.norm**2)
        assert report.effect == pytest.approx(math.sqrt(sum(shares) / len(shares)))
        assert {"effect-matched strength", "outputs moved by about"} <= report.to_row().keys()


def test_the_share_is_near_what_really_moves(source: ClipViT, target: ClipViT) -> None:
    """For a random update, which knows nothing of the inputs: at one site, against its inputs themselves."""
    images, labels = pictures(10), torch.arange(10) % CLASSES
    ((_, scales),) = signal_scales(target, [(images, labels)], head(target), [10])
    (site,) = [site for site in target.sites if site.name == "blocks.0.c_fc"]
    reads, gives = (scales[signal_key(site, signal)] for signal in (Signal.INPUT, Signal.OUTPUT))
    update = random_task_vector(target)
    rows = collect_signals(target, images, labels, head(target), [site], [Signal.INPUT])[signal_key(site, Signal.INPUT)]
    moved = (rows.flatten(0, -2) @ site.weight.read(update).T).square().sum(1).mean().sqrt() / gives.norm
    told = site.weight.read(update).norm() * reads.norm / math.sqrt(site.shape[1]) / gives.norm
    assert_close(told, moved, atol=0.0, rtol=0.15)


def test_without_sizes_there_are_no_such_columns(target: ClipViT) -> None:
    for report in judge_blocks("digits", target.sites, {}, target.state(), random_task_vector(target), 1.0):
        assert report.strength is report.effect is None and report.change > 0
        assert "effect-matched strength" not in report.to_row()
