"""Steps by a cache give the logits that the whole sequences give at once."""

import pytest
import torch

from pipeline.decoding import steps
from pipeline.decoding.steps import SharedSteps, Steps, steps_of
from tests import families

VOCABULARY = 12
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}


@pytest.mark.parametrize("family", [None, "marian"])
@pytest.mark.parametrize("beams", [1, 3, 7])  # of 7 the second token takes more than twice the first room
@torch.no_grad()
def test_beams_that_change_places_and_rows_that_end(make_model, family, beams, monkeypatch):
    monkeypatch.setattr(steps, "LEAST", 2)
    model = families.make_model(family, VOCABULARY, **SPECIAL) if family else make_model(vocab_size=VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    sources = torch.randint(3, VOCABULARY, (4, 6), generator=generator)
    sources[1, 4:] = sources[3, 2:] = 0
    mask = sources.ne(0).long()
    states = model.get_encoder()(input_ids=sources, attention_mask=mask).last_hidden_state
    copies = beams if family else 1  # of each source
    taken = steps_of(model, states.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0), beams)
    assert type(taken) is (Steps if family else SharedSteps)
    rows, ids = torch.arange(4), torch.ones(4, beams, 1, dtype=torch.long)
    new_ids = ids.flatten(0, 1)
    for turn in range(7):
        logits = taken.next_logits(new_ids)
        whole = model(
            input_ids=sources[rows].repeat_interleave(beams, 0),
            attention_mask=mask[rows].repeat_interleave(beams, 0),
            decoder_input_ids=ids.flatten(0, 1),
        )
        torch.testing.assert_close(logits, whole.logits[:, -1])
        origin = torch.randint(beams, ids.shape[:2], generator=generator)
        taken.reorder(origin)
        new = torch.randint(3, VOCABULARY, (*ids.shape[:2], 1), generator=generator)
        ids = torch.cat([ids.gather(1, origin[..., None].expand_as(ids)), new], -1)
        if turn in (2, 4):  # a row in the middle, then the first one
            kept = torch.tensor([0, 3, 2]) if turn == 2 else torch.tensor([2, 1])
            rows, ids = rows[kept], ids[kept]
            taken.keep(kept)
        new_ids = ids[..., -1:].flatten(0, 1)
