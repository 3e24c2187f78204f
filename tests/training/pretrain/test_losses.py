"""Loss and gradients of one step, against a reference that is written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from featurestore.errors import SettingError
from featurestore.training.pretrain.batches import Batch
from featurestore.training.pretrain.checkpoints import Trained
from featurestore.training.pretrain.cqt import CqtTarget
from featurestore.training.pretrain.evaluation import effective_rank, linear_probe
from featurestore.training.pretrain.losses import Counts, collapse, losses, term_names
from featurestore.training.pretrain.network import Heads, TrainedEncoder, start
from featurestore.training.pretrain.plan import Window
from featurestore.training.pretrain.settings import VarianceSettings
from featurestore.training.pretrain.training import layout_of
from tests.training.pretrain.conftest import NO_DROPOUT, SMALL, recipe_for


def make(recipe):
    torch.manual_seed(3)
    encoder = TrainedEncoder(start(recipe).encoder, recipe.dropout, recipe.feature_gradient).train()
    heads = Heads(encoder.encoder.dim, recipe, {"km": 12, "other": 7}, {"keys": 12, "odd": 2})
    return encoder, heads


def make_batch(layout, windows=3):
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(windows, layout.count, generator=draw) < 0.5
    wave = torch.randn(windows, layout.window, generator=draw)
    dense = torch.randint(0, 2, (windows, layout.count, 12), generator=draw).float()
    odd = F.one_hot(torch.randint(0, 2, (windows, layout.count), generator=draw), 2).float()
    odd[0, :5] = 0  # frames without any class
    tokens = {x: torch.randint(0, n, mask.shape, generator=draw) for x, n in (("km", 12), ("other", 7))}
    index = mask.flatten().nonzero()[:, 0]
    return Batch(
        windows=(Window(0, 0),) * windows,
        wave=wave,
        clean=wave.roll(1, 0),
        mask=mask,
        masked=index,
        unmasked=(~mask).flatten().nonzero()[:, 0],
        tokens=tokens,
        dense={"keys": dense, "odd": odd},
    )


def reference_states(p, batch, recipe, pre_norm):
    """HuBERT's forward pass, as plainly as it can be written, from parameters by their released names."""
    x = batch.wave[:, None]
    for i, (kernel, stride) in enumerate(zip([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2], strict=True)):
        assert p[f"feature_extractor.conv_layers.{i}.conv.weight"].shape[2] == kernel
        x = F.conv1d(x, p[f"feature_extractor.conv_layers.{i}.conv.weight"], stride=stride)
        if i == 0:
            norm = "feature_extractor.conv_layers.0.layer_norm"
            x = F.group_norm(x, x.shape[1], p[f"{norm}.weight"], p[f"{norm}.bias"])
        x = F.gelu(x)
    features = x.transpose(1, 2)
    if features.requires_grad:
        features.register_hook(lambda grad: grad * recipe.feature_gradient)
    penalty = (features**2).mean()

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    x = linear(norm(features, "feature_projection.layer_norm"), "feature_projection.projection")
    x = torch.stack(
        [
            torch.stack([p["masked_spec_embed"] if m else frame for frame, m in zip(window, mask, strict=True)])
            for window, mask in zip(x, batch.mask, strict=True)
        ]
    )
    position = "encoder.pos_conv_embed.conv"
    v, g = p[f"{position}.weight_v"], p[f"{position}.weight_g"]
    weight = g * v / (v**2).sum(dim=(0, 1), keepdim=True).sqrt()
    moved = F.conv1d(x.transpose(1, 2), weight, p[f"{position}.bias"], padding=8, groups=4)[..., :-1]
    x = x + F.gelu(moved).transpose(1, 2)
    if not pre_norm:
        x = norm(x, "encoder.layer_norm")
    for i in range(2):
        layer = f"encoder.layers.{i}"

        def attention(x, layer=layer):
            parts = []
            for head in range(2):
                own = slice(8 * head, 8 * head + 8)
                query, key, value = (linear(x, f"{layer}.attention.{n}_proj")[..., own] for n in "qkv")
                parts.append(torch.softmax(query @ key.transpose(1, 2) / math.sqrt(8), dim=-1) @ value)
            return linear(torch.cat(parts, dim=-1), f"{layer}.attention.out_proj")

        def forward(x, layer=layer):
            inner = F.gelu(linear(x, f"{layer}.feed_forward.intermediate_dense"))
            return linear(inner, f"{layer}.feed_forward.output_dense")

        if pre_norm:
            x = x + attention(norm(x, f"{layer}.layer_norm"))
            x = x + forward(norm(x, f"{layer}.final_layer_norm"))
        else:
            x = norm(x + attention(x), f"{layer}.layer_norm")
            x = norm(x + forward(x), f"{layer}.final_layer_norm")
    return (norm(x, "encoder.layer_norm") if pre_norm else x), penalty


def reference_loss(p, batch, recipe, layout, pre_norm):
    """The published loss, frame by frame."""
    x, penalty = reference_states(p, batch, recipe, pre_norm)
    spectrum = CqtTarget(recipe.cqt, layout)(batch.clean, layout.count)
    tokens, cqt, masked = 0.0, 0.0, int(batch.mask.sum())
    for w in range(len(x)):
        for t in range(layout.count):
            if not batch.mask[w, t]:
                continue
            projected = p["heads.final_proj.weight"] @ x[w, t] + p["heads.final_proj.bias"]
            embeddings = p["heads.label_embs_concat"]
            for book, (name, begin, end) in enumerate((("km", 0, 12), ("other", 12, 19))):
                own = projected[8 * book : 8 * book + 8]
                logits = torch.cosine_similarity(own[None], embeddings[begin:end]) / 0.1
                tokens = tokens - torch.log_softmax(logits, 0)[batch.tokens[name][w, t]]
            guess = p["heads.cqt.weight"] @ x[w, t] + p["heads.cqt.bias"]
            cqt = cqt + ((guess - spectrum[w, t]) ** 2).mean()
    keys = torch.sigmoid(x @ p["heads.auxiliary.keys_head.weight"].T + p["heads.auxiliary.keys_head.bias"])
    there = batch.dense["keys"]
    key_loss = -(there * keys.log() + (1 - there) * (1 - keys).log()).mean()
    odd = torch.log_softmax(x @ p["heads.auxiliary.odd_head.weight"].T + p["heads.auxiliary.odd_head.bias"], -1)
    odd_loss = -(odd * batch.dense["odd"]).sum() / batch.mask.numel()
    return tokens / masked + 10 * penalty + cqt / masked + key_loss + odd_loss


@pytest.mark.parametrize("pre_norm", [False, True])
def test_loss_and_gradients_of_a_step_are_those_of_the_reference(shared_data, pre_norm):
    recipe = recipe_for(
        shared_data,
        data={"labels": ["km", "other"]},
        model={"config": {**SMALL, "do_stable_layer_norm": pre_norm}},
        dropout=NO_DROPOUT,
    )
    encoder, heads = make(recipe)
    layout = layout_of(encoder.encoder, recipe.data.window)
    batch = make_batch(layout)
    counts = Counts(3, batch.mask.numel(), len(batch.masked))
    loss, terms = losses(
        *encoder(batch.wave, batch.mask), batch, heads, recipe, counts, CqtTarget(recipe.cqt, layout)
    )
    loss.backward()
    assert {"loss", *terms} == set(term_names(recipe))
    named = Trained(encoder, heads, None).named()
    copies = {name: x.detach().clone().requires_grad_() for name, x in named}
    expected = reference_loss(copies, batch, recipe, layout, pre_norm)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in named:
        wanted = copies[name].grad
        scale = wanted.abs().max()
        # The bias of the keys has no influence: what is there is rounding.
        close = (parameter.grad - wanted).abs().max() <= 2e-4 * scale + 1e-6
        assert close, f"{name}: {(parameter.grad - wanted).abs().max()} of {scale}"


def test_parts_of_a_step_add_up_to_one_large_batch(shared_data):
    recipe = recipe_for(
        shared_data,
        data={"labels": ["km", "other"]},
        dropout=NO_DROPOUT,
        tokens={"unmasked": 0.5},
        cqt={"everywhere": 1.0, "scale": "log", "centre": True},
    )
    encoder, heads = make(recipe)
    layout = layout_of(encoder.encoder, recipe.data.window)
    whole = make_batch(layout)
    counts = Counts(3, whole.mask.numel(), len(whole.masked))
    target = CqtTarget(recipe.cqt, layout)
    together, terms = losses(*encoder(whole.wave, whole.mask), whole, heads, recipe, counts, target)
    assert {"loss", *terms} == set(term_names(recipe))
    apart = 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        mask = whole.mask[rows]
        part = Batch(
            windows=whole.windows[rows],
            wave=whole.wave[rows],
            clean=whole.clean[rows],
            mask=mask,
            masked=mask.flatten().nonzero()[:, 0],
            unmasked=(~mask).flatten().nonzero()[:, 0],
            tokens={name: x[rows] for name, x in whole.tokens.items()},
            dense={name: x[rows] for name, x in whole.dense.items()},
        )
        apart += losses(*encoder(part.wave, part.mask), part, heads, recipe, counts, target)[0]
    assert apart.item() == pytest.approx(together.item(), rel=1e-5)


def test_what_is_dropped_is_dropped_in_training_only(shared_data, assert_states_close):
    recipe = recipe_for(shared_data, dropout={"input": 0.3, "hidden": 0.3, "attention": 0.3, "activation": 0.3})
    encoder, _ = make(recipe)
    batch = make_batch(layout_of(encoder.encoder, 0.5))
    outputs = [encoder(batch.wave, batch.mask)[0][-1] for _ in range(2)]
    assert not torch.equal(*outputs)
    encoder.eval()
    outputs = [encoder(batch.wave, batch.mask)[0][-1] for _ in range(2)]
    assert torch.equal(*outputs)
    unmasked, _ = encoder(batch.wave, torch.zeros_like(batch.mask))
    found, wanted = (torch.stack(list(x), dim=1).detach() for x in (unmasked, encoder.encoder.states(batch.wave)))
    assert_states_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.slow
def test_no_grouped_convolution_of_a_step_is_in_half_on_a_cpu(
    shared_data, dtype, compiled, grouped_convolutions, monkeypatch
):
    encoder, _ = make(recipe_for(shared_data, dropout=NO_DROPOUT))
    encoder.encoder.feature_extractor.requires_grad_(True)
    batch = make_batch(layout_of(encoder.encoder, 0.5))
    exact = torch.stack(encoder(batch.wave, batch.mask)[0])
    # What a compiler is given is the module itself.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    with grouped_convolutions() as seen:
        with torch.autocast("cpu", dtype=dtype):
            states, penalty = encoder(batch.wave, batch.mask)
        (states[-1].float() * torch.arange(16)).sum().add(penalty).backward()
    assert seen == [{torch.float32}] * (2 if compiled else 0)  # by spectra without
    found = torch.stack(states).float()
    assert F.cosine_similarity(found, exact, dim=-1).min() > 0.999
    weight = encoder.encoder.encoder.pos_conv_embed.conv.parametrizations.weight
    assert all(x.grad.dtype == torch.float32 and x.grad.abs().max() > 0 for x in weight.parameters())


def test_half_precision_that_is_wrong_on_this_processor_is_refused(shared_data, monkeypatch):
    encoder, _ = make(recipe_for(shared_data))
    encoder.check_half(torch.bfloat16)
    assert encoder.training
    right = encoder.encoder.feature_extractor.forward
    # Of both passes, only the one in half takes the modules.
    monkeypatch.setattr(encoder.encoder.feature_extractor, "forward", lambda wave: right(wave).flip(-1))
    with pytest.raises(SettingError, match=r"bf16 is far from float32 .* use run\.precision = \"fp32\""):
        encoder.check_half(torch.bfloat16)


def test_a_skipped_layer_hands_its_input_on(shared_data):
    encoder, _ = make(recipe_for(shared_data, dropout={**NO_DROPOUT, "layers": 0.5}))
    batch = make_batch(layout_of(encoder.encoder, 0.5))
    states, _ = encoder(batch.wave, batch.mask, (False, True))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    drawn = {encoder.draw_layers() for _ in range(50)}
    assert drawn == {(a, b) for a in (True, False) for b in (True, False)}


def test_collapsed_features_cost_and_spread_ones_do_not():
    draw = torch.Generator().manual_seed(0)
    spread = 3 * torch.randn(400, 50, 6, generator=draw)
    settings = VarianceSettings(frames=1)
    hinge, covariance = collapse(spread, settings)
    assert float(hinge) == 0
    same = spread[..., :1].expand(-1, -1, 6)
    assert float(collapse(same, settings)[1]) > 100 * float(covariance)
    assert float(collapse(spread * 0.01, settings)[0]) == pytest.approx(0.97, abs=0.01)


def test_the_effective_rank_is_that_of_equal_singular_values():
    draw = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(64, 64, generator=draw))
    for rank in (1, 5, 30):
        features = torch.randn(2_000, rank, generator=draw) @ directions[:rank]
        assert effective_rank(features) == pytest.approx(rank, rel=0.02)


def test_features_that_are_no_numbers_have_no_rank_and_no_probe():
    features = torch.randn(20, 5)
    features[3, 2] = math.nan
    assert math.isnan(effective_rank(features))
    assert math.isnan(linear_probe(features, torch.randn(20, 2)))


def test_the_probe_finds_what_is_there_and_nothing_else():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(400, 20, generator=draw)
    target = features[:, :3] @ torch.randn(3, 4, generator=draw)
    assert linear_probe(features, target) > 0.9
    assert linear_probe(features, torch.randn(400, 4, generator=draw)) < 0.1
