"""The dual-sided projection as it is meant: what stays, what is free, and where decay ends."""

import torch

from benchmarks.baselines.paper import Paper, span_above
from tests.fakes.rotated_rows import rotated
from tests.unit.methods.contexts import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TRAINING,
    batch_of,
    context_on,
    pair_for,
    random_heads,
    random_rows,
)
from workers.methods.method import Recipe, Vanilla
from workers.model.heads import ModalityHeads
from workers.nullspace.moments import SecondMoment
from workers.train.loop import new_heads, train_pair
from workers.train.run import Run

NEW, OLD = random_rows(IMAGE_TEXT, seed=1, rows=16), random_rows(AUDIO_IMAGE, seed=2)
EXACT = Paper(input_threshold=0.0, output_threshold=0.0)
HARD = TRAINING.model_copy(update={"epochs": 4})
RECIPE = Recipe(weight_decay=0.5, averaged_share=0.0)


def trained_by(method: Vanilla | Paper) -> ModalityHeads:
    """Only the image head has a past: audio, of rank 4 with the bias, like the old images."""
    context = context_on(IMAGE_TEXT, [(AUDIO_IMAGE, OLD)], training=HARD, recipe=RECIPE)
    spaces = method.update_spaces(context)
    trained = train_pair(method, context, spaces, rotated(context, spaces, NEW), Run())
    return new_heads(context, spaces, trained.changes)


def old_scores(heads: ModalityHeads) -> torch.Tensor:
    return (OLD.first_NI @ heads.weights["audio"].mT) @ (
        OLD.second_NJ @ heads.weights["image"].mT
    ).mT


def test_old_scores_stay_through_a_training_with_adamw_and_decay() -> None:
    """The bias is part of them, and so is AdamW's rescaling, which a projected gradient would not survive."""
    before = old_scores(random_heads(0))
    torch.testing.assert_close(old_scores(trained_by(EXACT)), before, rtol=0, atol=1e-12)
    assert float((old_scores(trained_by(Vanilla())) - before).abs().max()) > 1e-2


def test_a_step_is_projected_by_the_formula() -> None:
    """ΔW − P_out ΔW P_in with dense projectors from the rows, at thresholds that cut both sides."""
    context = context_on(IMAGE_TEXT, [(AUDIO_IMAGE, OLD)])
    embeddings = OLD.first_NI @ random_heads(0).weights["audio"].mT
    cuts, projectors = [], []
    for rows in (embeddings, OLD.second_NJ):
        values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
        cuts.append(float(values[-3:-1].mean()))
        kept = vectors[:, values > cuts[-1]]
        projectors.append(kept @ kept.mT)
    method = Paper(output_threshold=cuts[0], input_threshold=cuts[1])
    pair = pair_for(method, context)
    change, text = (one.detach().clone() for one in pair.changes)
    rule = method.update_rule(context, pair)
    rule.backward(batch_of(context, pair, NEW))
    rule.after_update(0.1)
    expected = change - projectors[0] @ change @ projectors[1]
    torch.testing.assert_close(pair.first.change_EI.detach(), expected)
    assert torch.equal(pair.second.change_EI, text)
    assert float((expected - change).abs().max()) > 1e-2


def test_span_has_the_directions_above_the_threshold() -> None:
    moment = SecondMoment(10, torch.diag(torch.tensor([30.0, 9.0, 0.5, 0.0]).double()))
    ranks = {cut: span_above(moment, cut).shape[1] for cut in (0.0, 0.04, 0.06, 1.0, 5.0)}
    assert ranks == {0.0: 3, 0.04: 3, 0.06: 2, 1.0: 1, 5.0: 0}
