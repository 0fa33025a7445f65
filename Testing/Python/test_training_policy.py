"""The demo policy's training: what it is taught is what it will be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ibis_agent.actions import Click, Terminate, parse_reply
from ibis_agent.chat import Chat
from ibis_agent.model_card import load_card
from ibis_agent.policy import Turn
from ibis_agent.prompts import build_messages
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from training import questions
from training.dataset import SIDE
from training.demo_policy import PATCH, make_config, make_tokenizer, save_folder
from training.policy_turns import (
    MEAN,
    STD,
    Writer,
    collate,
    correction,
    deepest,
    grid_of,
    patches_of,
    show,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(questions.corpus(np.random.default_rng(0), 200))
    model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer, 64, 2, 2))
    out = tmp_path_factory.mktemp("policy")
    save_folder(model, tokenizer, out)
    return out


@pytest.fixture(scope="module")
def writer(folder):
    return Writer(Tokenizer.from_file(str(folder / "tokenizer.json")))


def picture(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(150, 180), (101, 122), (512, 512), (300, 420)])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("note", ["", "Reply again.", "Not Positive Point (0.2500, 0.5000)."])
def test_a_training_sample_and_the_request_of_the_same_state_have_the_same_tokens(
    folder, writer, size, number, note
):
    card = load_card(folder)
    chat = Chat.load(folder, card)
    rgb = picture(*size)
    turn = Turn(rgb, "Segment the left kidney.", number, has_mask=number > 1, note=note)
    reply = questions.first_reply("left kidney", Click(0.31, 0.45))
    encoded = chat.encode(build_messages(card, turn), [rgb], reply)
    request = chat.encode(build_messages(card, turn), [rgb])

    template = card.prompts.first if number == 1 else card.prompts.refine
    prompt = template.replace("{question}", turn.question) + (f"\n{note}" if note else "")
    asked = writer.ask(prompt, reply)
    rows, columns = grid_of(size[1] / size[0], small=size[0] * size[1] < card.min_pixels)
    visual = [writer.special["<|image_pad|>"]] * (rows * columns)
    assert encoded.ids.tolist() == [*writer.prefix, *visual, *asked.ids]
    assert encoded.learn.tolist()[-len(asked.ids) :] == [w > 0 for w in asked.weights]
    assert request.ids.tolist() == encoded.ids.tolist()[: len(request.ids)]


def test_training_lays_out_patches_as_the_processor_does(folder):
    chat = Chat.load(folder, load_card(folder))
    rows, columns = grid_of(1.0, True)
    rgb = picture(rows * 2 * PATCH, columns * 2 * PATCH)
    pixels = chat.encode(build_messages(load_card(folder), Turn(rgb, "liver", 1, False)), [rgb]).pixels
    own = torch.from_numpy(((rgb / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None]
    assert np.abs(patches_of(own).numpy() - pixels).max() < 1e-5


def test_questions_that_share_a_picture_are_read_as_if_each_stood_alone(folder, writer):
    from training.policy_turns import Asked, Shown

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float().eval()
    rows, columns = grid = grid_of(1.1, True)
    pixels = np.random.default_rng(1).random((3, rows * 2 * PATCH, columns * 2 * PATCH)).astype(np.float32)
    asked: list[Asked] = [
        writer.ask("Segment the liver", questions.first_reply("liver", Click(0.3, 0.4))),
        writer.ask("Segment the spleen", questions.absent_reply("spleen")),
    ]
    empty = (np.zeros((rows * columns, 60)), np.full((8, 3), -1.0), np.zeros(rows * columns))

    def hidden(some):
        batch = collate(writer, [Shown(pixels, some, *empty)], grid)
        thw = torch.tensor([[1, rows * 2, columns * 2]])
        seen = model.model.visual(patches_of(batch["pictures"]), grid_thw=thw).pooler_output
        language = model.model.language_model
        start = len(writer.prefix)
        embedded = language.embed_tokens(batch["ids"]).clone()
        embedded[0, start : start + rows * columns] = seen
        mask = torch.zeros(batch["allowed"].shape).masked_fill(~batch["allowed"], -1e30)[:, None]
        return language(
            inputs_embeds=embedded, attention_mask=mask, position_ids=batch["positions"]
        ).last_hidden_state[0]

    with torch.inference_mode():
        together, alone = hidden(asked), hidden(asked[1:])
    count = len(asked[1].ids)
    assert torch.allclose(together[-count:], alone[-count:], atol=1e-4)


def test_every_reply_that_is_taught_can_be_read(writer):
    rng = np.random.default_rng(3)
    for name in [*questions.WORDS, *questions.NEVER_PRESENT]:
        click = Click(float(rng.random()), float(rng.random()), bool(rng.random() < 0.5))
        for text in (questions.first_reply(name, click), questions.correction_reply(name, click)):
            action = parse_reply(text).action
            assert isinstance(action, Click) and abs(action.x - click.x) <= 0.011
        for text in (questions.absent_reply(name), questions.done_reply(name)):
            assert isinstance(parse_reply(text).action, Terminate)
        assert writer.tokenizer.decode(writer.text(text)) == text


def at(mask, click):
    return bool(mask[int(click.y * SIDE), int(click.x * SIDE)])


def test_the_deepest_point_of_a_disc_is_its_centre():
    y, x = np.ogrid[:SIDE, :SIDE]
    assert deepest((y - 60) ** 2 + (x - 120) ** 2 < 400, 1.0) == pytest.approx((120.5 / SIDE, 60.5 / SIDE))


def test_a_correction_takes_away_what_is_wrong_and_adds_what_is_missed():
    truth = np.zeros((SIDE, SIDE), bool)
    truth[40:100, 40:100] = True
    spilled = truth.copy()
    spilled[40:100, 100:160] = True
    away = correction(spilled, truth, 1.0)
    assert (
        not away.positive
        and spilled[int(away.y * SIDE), int(away.x * SIDE)]
        and not truth[int(away.y * SIDE), int(away.x * SIDE)]
    )
    missing = truth.copy()
    missing[40:100, 70:100] = False
    add = correction(missing, truth, 1.0)
    assert (
        add.positive
        and truth[int(add.y * SIDE), int(add.x * SIDE)]
        and not missing[int(add.y * SIDE), int(add.x * SIDE)]
    )


def test_a_picture_without_a_structure_is_asked_about_it_and_answered_so(writer):
    grey, bits = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.uint16)
    bits[50:90, 50:90] = 1  # a liver and nothing else
    shown = show(writer, grey, bits, 1.0, grid_of(1.0, True), False, np.random.default_rng(0))
    texts = [writer.tokenizer.decode(a.ids) for a in shown.asked]
    assert sum("Positive Point" in t for t in texts) == 1
    assert sum("Terminate" in t for t in texts) >= 2
