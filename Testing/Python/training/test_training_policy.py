"""The demo policy's training: what it is taught is what it will be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ibis_agent.actions import Click, Terminate, parse_reply
from ibis_agent.policy.card import load_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.messages import build_messages
from ibis_agent.policy.qwen25.chat import Chat
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from training.common import questions
from training.demo.dataset import NAMES, SIDE, Slices
from training.demo.empty_policy import PATCH, make_config, make_tokenizer, save_folder
from training.demo.policy_clicks import STEPS, correction, deepest, depth_of, digit_worth, good_click, worth
from training.demo.policy_turns import MEAN, STD, Shown, collate, grid_of, patches_of, show
from training.demo.policy_writer import Asked, Writer
from training.demo.train_policy import reply_loss, sampling_weight


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

    asked = writer.ask(turn.question, reply, masked=number > 1, note=note)
    rows, columns = grid_of(size[1] / size[0], small=size[0] * size[1] < card.min_pixels)
    opening, places = writer.start((rows, columns))
    assert encoded.ids.tolist() == [*opening, *asked.ids]
    assert encoded.positions[:, : len(opening)].tolist() == places.tolist()
    assert encoded.learn.tolist()[-len(asked.ids) :] == [w > 0 for w in asked.weights]
    assert request.ids.tolist() == encoded.ids.tolist()[: len(request.ids)]


@pytest.mark.parametrize(
    "masked, note, user",
    [
        (False, "", "Segment the liver"),
        (True, "", "The mask so far is green. Segment the liver"),
        (False, "Reply again.", "Segment the liver\nReply again."),
    ],
)
def test_a_sample_reads_as_the_chat_that_the_committed_policy_was_trained_on(writer, masked, note, user):
    asked = writer.ask("please outline the hepatic parenchyma", "Yes.", masked=masked, note=note)
    written = writer.tokenizer.decode([*writer.prefix, *asked.ids], skip_special_tokens=False)
    assert written == (
        "<|im_start|>system\nYou segment medical pictures by clicking.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|><|vision_end|>{user}<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>"
    )


def test_training_lays_out_patches_as_the_processor_does(folder):
    chat = Chat.load(folder, load_card(folder))
    rows, columns = grid_of(1.0, True)
    rgb = picture(rows * 2 * PATCH, columns * 2 * PATCH)
    pixels = chat.encode(build_messages(load_card(folder), Turn(rgb, "liver", 1, False)), [rgb]).pixels
    own = torch.from_numpy(((rgb / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None]
    assert np.abs(patches_of(own).numpy() - pixels).max() < 1e-5


def test_questions_that_share_a_picture_are_read_as_if_each_stood_alone(folder, writer):
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


def disc(x, y, radius):
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def test_the_deepest_point_of_a_disc_is_its_centre():
    assert deepest(depth_of(disc(120, 60, 20), 1.0)) == pytest.approx((120.5 / SIDE, 60.5 / SIDE))


def test_a_correction_takes_away_what_is_wrong_and_adds_what_is_missed():
    truth = np.zeros((SIDE, SIDE), bool)
    truth[40:100, 40:100] = True
    spilled = truth.copy()
    spilled[40:100, 100:160] = True
    positive, region = correction(spilled, truth, 1.0)
    assert not positive and (region == (spilled & ~truth)).all()
    missing = truth.copy()
    missing[40:100, 70:100] = False
    positive, region = correction(missing, truth, 1.0)
    assert positive and (region == (truth & ~missing)).all()


@pytest.mark.parametrize("region", [disc(120, 60, 20), disc(30, 150, 3), disc(95, 95, 60)])
@pytest.mark.parametrize("seed", range(4))
def test_every_click_that_is_taught_lies_inside_and_in_the_zone_that_was_named(region, seed):
    click, value = good_click(depth_of(region, 1.2), True, np.random.default_rng(seed))
    assert at(region, click)
    assert questions.zone(click.x, click.y) == questions.zone(*deepest(depth_of(region, 1.2)))
    assert value.max() == 1 and value[int(click.x * STEPS + 0.5), int(click.y * STEPS + 0.5)] > 0.4


def test_what_a_click_is_worth_falls_from_the_middle_to_nothing_outside():
    region = disc(96, 96, 20)
    depth = depth_of(region, 1.0)
    value = worth(depth, Click(*deepest(depth)))
    assert value[50, 50] == 1 and 0.1 < value[55, 50] < 0.6 and value[63, 50] == 0
    for x, y in np.argwhere(value > 0):
        assert at(region, Click(x / STEPS, y / STEPS))


def test_digits_are_worth_what_the_best_click_that_begins_with_them_is():
    value = np.zeros((STEPS, STEPS), np.float32)
    value[37, 62], value[37, 70], value[42, 62] = 1.0, 0.5, 0.25
    tens, ones, tens_y, ones_y = digit_worth(value, 37, 62)
    assert tens[3] == 1 and tens[4] == 0.25 and tens.sum() == 1.25
    assert ones[7] == 1 and ones.sum() == 1
    assert tens_y[6] == 1 and tens_y[7] == 0.5 and tens_y.sum() == 1.5
    assert ones_y[2] == 1 and ones_y.sum() == 1


def test_the_digits_of_a_click_are_marked_with_what_they_are_worth(writer):
    region = disc(71, 119, 20)
    click, value = good_click(depth_of(region, 1.0), True, np.random.default_rng(1))
    asked = writer.ask("Segment the liver", questions.first_reply("liver", click), value)
    written = [writer.tokenizer.id_to_token(asked.ids[place]) for place, _ in asked.worth]
    assert written == list(f"{round(click.x * STEPS):02d}{round(click.y * STEPS):02d}")
    assert all(digits[int(token)] > 0.3 for token, (_, digits) in zip(written, asked.worth, strict=True))
    assert not writer.ask("Segment the liver", questions.absent_reply("liver"), value).worth


def test_any_digit_that_is_worth_the_same_costs_the_same(writer):
    labels = torch.tensor([writer.digits[3], 5])
    worths = torch.zeros(2, 10)
    worths[0, 3] = worths[0, 4] = 1

    def loss(token):
        logits = torch.zeros(2, writer.tokenizer.get_vocab_size())
        logits[0, token] = logits[1, 5] = 20.0
        return reply_loss(logits, labels, worths, writer.digits)

    right, neighbour, wrong = (loss(writer.digits[digit]) for digit in (3, 4, 8))
    assert right.max() < 1e-3 and neighbour.max() < 1e-3
    assert wrong[0] > 5 and wrong[1] < 1e-3, "a token that is not a digit of a click is learnt as it stands"


def test_a_picture_without_a_structure_is_asked_about_it_and_answered_so(writer):
    grey, bits = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.uint16)
    bits[50:90, 50:90] = 1  # a liver and nothing else
    shown = show(writer, grey, bits, 1.0, grid_of(1.0, True), False, np.random.default_rng(0))
    texts = [writer.tokenizer.decode(a.ids) for a in shown.asked]
    assert sum("Positive Point" in t for t in texts) == 1
    assert sum("Terminate" in t for t in texts) >= 2


def test_lesions_and_what_is_small_are_shown_oftener():
    shows = {"liver": 9, "spleen": 9, "stomach": 30, "lesion": 9}  # radius of each, one to a slice
    bits = np.stack([disc(96, 96, radius).astype(np.uint16) << NAMES.index(n) for n, radius in shows.items()])
    slices = Slices(np.zeros(bits.shape, np.int16), bits, np.ones(4, np.float32), np.zeros(4, bool))
    assert [sampling_weight(slices, n) for n in range(4)] == [1, 2.5, 1, 2]
