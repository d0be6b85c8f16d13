"""The logit lens: the last column is what the model says, an earlier one the head on an earlier state."""

from __future__ import annotations

import torch
from edit_world import facts, trained_model

from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.tracing.lens import logit_lens


def test_every_column_is_the_head_on_that_layers_state() -> None:
    model, fact = trained_model(), facts(1)[0]
    tokenizer = tokenizer_of(model)
    found = logit_lens(model, fact.prompt, fact.target_true)
    token_ids = torch.tensor([tokenizer.encode(fact.prompt)])
    wanted = tokenizer.encode(" " + fact.target_true)[0]
    assert found.target == tokenizer.token_text(wanted)
    for layer in range(model.config.n_layer):
        with torch.no_grad():
            state = model.run_blocks(model.embed_tokens(token_ids), stop=layer + 1)
            p = model.logits(model.final(state))[0, :, : tokenizer.vocab_size].softmax(-1)
        rows = torch.tensor([row[layer] for row in found.p_target])
        torch.testing.assert_close(rows, p[:, wanted])
        assert [row[layer] for row in found.best] == [tokenizer.token_text(i) for i in p.argmax(-1).tolist()]


def test_without_a_target_the_models_own_choice_is_followed() -> None:
    model = trained_model()
    found = logit_lens(model, facts(1)[0].prompt)
    assert found.target == found.best[-1][-1]
    assert found.p_target[-1][-1] == found.p_best[-1][-1]
